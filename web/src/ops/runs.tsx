// The room of runs: which there are, and of one: its stages, curves while they are made, the funnel, answers by age.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { figure, t } from "../i18n";
import { place, settle } from "../router";
import { type Row, type Run, type RunSummary, type Stage, runs } from "./api";
import { Curve, type Series } from "./curve";
import { Show, sentence, useLoaded } from "./load";
import { Watch } from "./watch";
import { duration, moment, named, w } from "./words";
import "./ops.css";

export default function Runs() {
  const all = useLoaded(runs);
  return (
    <main class="ops" tabIndex={-1}>
      <h1>{t("runs")}</h1>
      <Show of={all}>{({ runs }) => (runs.length ? <Chosen runs={runs} /> : <p class="note">{w("noRuns")}</p>)}</Show>
    </main>
  );
}

/** The run of the address, or the one that changed last. */
function Chosen({ runs }: { runs: RunSummary[] }) {
  const name = place.value.rest || runs[0]!.name;
  useEffect(() => {
    if (!place.value.rest) settle(`#/runs/${encodeURIComponent(name)}`);
  }, [name]);
  return (
    <>
      <nav class="pills" aria-label={w("nextRun")}>
        {runs.map((one) => (
          <a
            key={one.name} href={`#/runs/${encodeURIComponent(one.name)}`}
            aria-current={one.name === name ? "page" : undefined}
          >
            {one.name}
          </a>
        ))}
      </nav>
      <RunView key={name} name={name} />
    </>
  );
}

function RunView({ name }: { name: string }) {
  const watch = useSignal<Watch | null>(null);
  useEffect(() => {
    const begun = (watch.value = new Watch(name));
    return () => begun.end();
  }, [name]);
  const run = watch.value?.run.value;
  const problem = watch.value?.problem.value;
  return (
    <>
      {problem ? <p class="problem" role="alert">{sentence(problem)}</p> : null}
      {!run && !problem && <p class="note" role="status">{w("working")}</p>}
      {run && (
        <>
          <Headline run={run} />
          <Stages stages={run.stages} />
          <Curves stages={run.stages} rows={watch.value!.rows.value} />
          <Funnel run={run} />
          <Answers run={run} />
        </>
      )}
    </>
  );
}

function Headline({ run }: { run: Run }) {
  return (
    <p class="headline">
      <span class={`state ${run.state}`}>{w(run.state)}</span>
      <span>{w("stagesDone", { done: run.done, of: run.of })}</span>
      <span>{duration(run.seconds)}</span>
      {run.changed && <time dateTime={run.changed}>{moment(run.changed)}</time>}
    </p>
  );
}

function Stages({ stages }: { stages: Stage[] }) {
  return (
    <section>
      <h2>{w("stages")}</h2>
      <ol class="stages">
        {stages.map((stage) => (
          <li key={stage.name} class={stage.state}>
            <h3>
              {stage.life ? named(stage.life) : stage.name} {stage.life && <code>{stage.name}</code>}
            </h3>
            <p>
              <span class={`state ${stage.state}`}>{w(stage.state)}</span>
              {stage.seconds != null && <span>{duration(stage.seconds)}</span>}
            </p>
            {stage.why && <p class="note">{w("why", { why: stage.why })}</p>}
            <Figures of={stage.figures} />
          </li>
        ))}
      </ol>
    </section>
  );
}

function Figures({ of }: { of: Stage["figures"] }) {
  const all = Object.entries(of);
  if (!all.length) return null;
  return (
    <details>
      <summary>{w("figures")}</summary>
      <dl class="facts">
        {all.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{typeof value === "number" ? figure(value, 4) : value}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

/** The pictures of a stage; whatever else has a loss is drawn like the first. */
function pictures(stage: string): { title: string; unit: string; series: Series[] }[] {
  if (["ppo", "grpo", "online_dpo"].includes(stage)) {
    const one = (key: "reward" | "kl", unit: string, colour: string) => ({
      title: `${stage}: ${w(key)}`, unit, series: [{ key, label: w(key), colour }],
    });
    return [one("reward", w("proxy"), "--ember"), one("kl", w("natsWhole"), "--lake")];
  }
  const units = { sft: w("natsAnswer"), reward: w("natsComparison") } as Record<string, string>;
  const series = [
    { key: "loss", label: w("training"), colour: "--faded" },
    { key: "val_loss", label: w("heldOut"), colour: "--cinnabar" },
  ];
  return [{ title: stage, unit: units[stage] ?? w("natsToken"), series }];
}

function Curves({ stages, rows }: { stages: Stage[]; rows: Record<string, readonly Row[]> }) {
  const drawn = stages.flatMap(({ name }) =>
    pictures(name)
      .filter(({ series }) => rows[name]?.some((row) => series.some(({ key }) => typeof row[key] === "number")))
      .map((picture) => ({ stage: name, ...picture })),
  );
  if (!drawn.length) return null;
  return (
    <section>
      <h2>{w("curves")}</h2>
      <div class="curves">
        {drawn.map(({ stage, title, unit, series }) => (
          <Curve key={stage + title} title={title} unit={unit} rows={rows[stage]!} series={series} />
        ))}
      </div>
      <Sample stages={stages} rows={rows} />
    </section>
  );
}

/** What the model wrote when it was last looked at, while a stage runs. */
function Sample({ stages, rows }: { stages: Stage[]; rows: Record<string, readonly Row[]> }) {
  const running = stages.find((stage) => stage.state === "running");
  const row = running && rows[running.name]?.findLast((one) => typeof one.sample === "string");
  if (!row) return null;
  return (
    <figure class="sample">
      <figcaption>{w("sample", { step: row.step })}</figcaption>
      <blockquote>{row.sample}</blockquote>
    </figure>
  );
}

function Funnel({ run: { name, funnel, dropped, unread } }: { run: Run }) {
  if (!funnel.length) return null;
  const most = Math.max(...funnel.map((step) => step.documents), 1);
  const list = (counts: Record<string, number>) =>
    Object.entries(counts).map(([reason, n]) => `${reason.replaceAll("_", " ")} ${figure(n)}`).join(" · ");
  return (
    <section>
      <h2>{w("funnel")}</h2>
      <table class="funnel">
        <tbody>
          {funnel.map(({ step, documents, characters }) => (
            <tr key={step}>
              <th scope="row">{named(step)}</th>
              <td class="bar"><i style={{ width: `${(100 * documents) / most}%` }} /></td>
              <td>{w("documents", { n: figure(documents) })}</td>
              <td class="note">{w("characters", { n: figure(characters) })}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {list(dropped) && <p class="note">{w("dropped", { list: list(dropped) })}</p>}
      {list(unread) && (
        <p class="note">{w("unread", { list: list(unread), file: `${name}/corpus/quarantine.jsonl` })}</p>
      )}
    </section>
  );
}

function Answers({ run: { answers } }: { run: Run }) {
  const chosen = useSignal(0);
  const one = answers[Math.min(chosen.value, answers.length - 1)];
  if (!one) return null;
  return (
    <section>
      <h2>{w("answers")}</h2>
      <label class="field">
        <span>{w("question")}</span>
        <select value={chosen.value} onChange={(event) => (chosen.value = Number(event.currentTarget.value))}>
          {answers.map(({ prompt }, index) => (
            <option key={index} value={index}>{prompt}</option>
          ))}
        </select>
      </label>
      <ol class="ages">
        {Object.entries(one.answers).map(([life, text]) => (
          <li key={life}>
            <h3>{named(life)}</h3>
            <blockquote>{text}</blockquote>
          </li>
        ))}
      </ol>
    </section>
  );
}
