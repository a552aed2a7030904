// In:  rows that grow, which of their numbers to draw. Out: a picture of them by step, drawn by uPlot.
// Left out: where rows come from (runs.tsx).
//
// uPlot styles its elements through the CSSOM, which the content policy allows; colours are those of the page.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { figure } from "../i18n";
import { theme } from "../settings";
import type { Row } from "./api";
import { w } from "./words";

export interface Series {
  key: string;
  label: string;
  colour: string; // a custom property of the page
}

interface Picture {
  title: string;
  unit: string;
  rows: readonly Row[];
  series: Series[];
}

const HEIGHT = 190;

export function Curve({ title, unit, rows, series }: Picture) {
  const place = useRef<HTMLDivElement>(null);
  const drawn = useRef<uPlot | null>(null);
  const look = theme.value;
  const labels = series.map((one) => one.label).join("\n");
  useEffect(() => {
    const box = place.current!;
    const make = () => {
      drawn.current?.destroy();
      drawn.current = new uPlot(options(box, series), columns(rows, series), box);
    };
    make();
    const fit = new ResizeObserver(() => drawn.current!.setSize({ width: box.clientWidth, height: HEIGHT }));
    fit.observe(box);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", make);
    return () => {
      dark.removeEventListener("change", make);
      fit.disconnect();
      drawn.current?.destroy();
      drawn.current = null;
    };
  }, [look, labels]);
  useEffect(() => drawn.current?.setData(columns(rows, series)), [rows.length, rows.at(-1)]);
  return (
    <figure class="curve">
      <figcaption>
        {title} <span class="note">{unit}</span>
      </figcaption>
      <div ref={place} role="img" aria-label={w("perStep", { title, series: lately(rows, series) })} />
      <ul class="legend">
        {series.map((one) => (
          <li key={one.key}>
            <i style={{ background: `var(${one.colour})` }} />
            {one.label} <b>{last(rows, one.key)}</b>
          </li>
        ))}
      </ul>
    </figure>
  );
}

/** What someone who cannot see the picture should know of it. */
function lately(rows: readonly Row[], series: Series[]): string {
  return series
    .map(({ key, label }) => {
      const row = rows.findLast((one) => typeof one[key] === "number");
      return row ? w("nowAt", { label, value: figure(row[key] as number, 3), step: row.step }) : "";
    })
    .filter(Boolean)
    .join("; ");
}

function last(rows: readonly Row[], key: string): string {
  const row = rows.findLast((one) => typeof one[key] === "number");
  return row ? figure(row[key] as number, 3) : "–";
}

/** Steps, then a column for each series; a step has a line for training and perhaps another for what was held out. */
function columns(rows: readonly Row[], series: Series[]): uPlot.AlignedData {
  const steps = [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b);
  const at = new Map(steps.map((step, index) => [step, index]));
  const found = series.map(({ key }) => {
    const column = new Array<number | null>(steps.length).fill(null);
    for (const row of rows) if (typeof row[key] === "number") column[at.get(row.step)!] = row[key];
    return column;
  });
  return [steps, ...found];
}

function options(box: HTMLElement, series: Series[]): uPlot.Options {
  const style = getComputedStyle(box);
  const colour = (name: string) => resolved(box, name);
  const font = `11px ${style.fontFamily}`;
  const axis: uPlot.Axis = {
    stroke: colour("--faded"), font, ticks: { stroke: colour("--line"), size: 4 },
    grid: { stroke: colour("--line"), width: 0.5 },
  };
  return {
    width: box.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { drag: { x: true, y: false }, points: { size: 6 } },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 30 }, { ...axis, size: 46 }],
    series: [
      {},
      ...series.map(({ key, label, colour: name }) => ({
        label, stroke: colour(name), width: 1.6, spanGaps: true, points: { show: key.startsWith("val"), size: 5 },
      })),
    ],
  };
}

/** A custom property as a colour that a canvas knows: light-dark() is resolved by the element that it is put on. */
function resolved(box: HTMLElement, name: string): string {
  const probe = box.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
