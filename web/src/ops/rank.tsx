// The room of rankings: several answers, who wrote them hidden; people order them by number, by steps or by dragging.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { figure, t } from "../i18n";
import { models, starters } from "../settings";
import { Text } from "../text";
import { type Tiers, beside, put, step, tierOf, untouched } from "./order";
import {
  asked, busy, choose, comparison, handIn, handedIn, howMany, next, problem, prompt, reason, shown, stop, tiers, verdict, write,
} from "./ranking";
import { w } from "./words";
import "./ops.css";

const MOST = 6;
const touch = matchMedia("(hover: none)"); // no keys to press, and nothing can be dragged
const letter = (place: number): string => "ABCDEF"[place]!;

export default function Rank() {
  return (
    <main class="ops" tabIndex={-1}>
      <h1>{t("rank")}</h1>
      <p class="lead">{w("rankMore")}</p>
      <Question />
      {problem.value && <p class="problem" role="alert">{problem.value}</p>}
      {shown.value.length > 0 && <Order />}
    </main>
  );
}

function Question() {
  const send = (event: Event) => {
    event.preventDefault();
    if (prompt.value.trim() && !busy.value) void write();
  };
  return (
    <form class="question" onSubmit={send}>
      <label class="field wide">
        <span>{w("prompt")}</span>
        <textarea
          rows={2} value={prompt.value} disabled={busy.value} onInput={(event) => (prompt.value = event.currentTarget.value)}
        />
      </label>
      <Models />
      <label class="field">
        <span>{w("howMany")}</span>
        <select value={howMany.value} onChange={(event) => choose(asked(), Number(event.currentTarget.value))}>
          {Array.from({ length: MOST - 1 }, (_, index) => index + 2).map((n) => (
            <option key={n} value={n} disabled={n < asked().length}>{n}</option>
          ))}
        </select>
      </label>
      <div class="acts">
        {starters.value.length > 0 && !busy.value && (
          <button type="button" class="quiet" onClick={next}>{w("another")}</button>
        )}
        {busy.value ? (
          <button type="button" class="quiet firm" onClick={stop}>{w("stop")}</button>
        ) : (
          <button type="submit" class="quiet firm" disabled={!prompt.value.trim()}>{w("write")}</button>
        )}
      </div>
    </form>
  );
}

function Models() {
  const names = asked();
  const toggle = (name: string, on: boolean) => {
    const now = on ? [...names, name] : names.filter((one) => one !== name);
    if (now.length && now.length <= MOST) choose(now, howMany.value);
  };
  if (models.value.length < 2) return null;
  return (
    <fieldset class="field">
      <legend>{w("models")}</legend>
      <div class="checks">
        {models.value.map(({ id }) => (
          <label key={id}>
            <input
              type="checkbox" checked={names.includes(id)} disabled={names.length === 1 && names[0] === id}
              onChange={(event) => toggle(id, event.currentTarget.checked)}
            />
            {id}
          </label>
        ))}
      </div>
    </fieldset>
  );
}

function Order() {
  const said = useSignal("");
  const list = useRef<HTMLOListElement>(null);
  const ready = comparison.value !== null && verdict.value === null;
  // The list takes the focus when it can be ordered, not an answer: a highlighted one would be a recommendation.
  useEffect(() => {
    if (ready) list.current?.focus({ preventScroll: true });
  }, [ready]);
  const move = (place: number, to: Tiers) => {
    tiers.value = to;
    const at = tierOf(to, place);
    const tie = to[at]!.length > 1 ? w("tie") : "";
    said.value = w("moved", { letter: letter(place), rank: at + 1, tiers: to.length, tie });
    // Moving an element in the document takes the focus from it.
    requestAnimationFrame(() => list.current?.querySelector<HTMLElement>(`[data-place="${place}"]`)?.focus());
  };
  return (
    <section>
      {ready && <p class="note" id="order-help">{w(touch.matches ? "orderHelpTouch" : "orderHelp")}</p>}
      <ol
        class={ready ? "order ready" : "order"} ref={list} tabIndex={-1} aria-label={w("order")}
        aria-describedby={ready ? "order-help" : undefined} aria-busy={busy.value}
      >
        {tiers.value.flatMap((tier, rank) =>
          tier.map((place) => (
            <Answer key={place} place={place} rank={rank} tie={tier.length > 1} ready={ready} move={move} />
          )),
        )}
      </ol>
      <p class="unseen" aria-live="polite">{said.value}</p>
      {ready && <HandIn />}
      {verdict.value && (
        <div class="thanks">
          <p role="status">{w("thanks")}</p>
          <button type="button" class="quiet firm" onClick={next}>{w("again")}</button>
        </div>
      )}
    </section>
  );
}

interface AnswerProps {
  place: number;
  rank: number;
  tie: boolean;
  ready: boolean;
  move: (place: number, to: Tiers) => void;
}

const DRAGGED = "application/x-danlu-place";

function Answer({ place, rank, tie, ready, move }: AnswerProps) {
  const one = shown.value[place]!;
  const over = useSignal<"" | "before" | "after">("");
  const name = letter(place);
  const keys = (event: KeyboardEvent) => {
    if (!ready || event.altKey || event.ctrlKey || event.metaKey || event.target !== event.currentTarget) return;
    const to = wanted(event.key, place);
    if (!to) return;
    event.preventDefault();
    move(place, to);
  };
  const half = (event: DragEvent): "before" | "after" => {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    return event.clientY < box.top + box.height / 2 ? "before" : "after";
  };
  const dragOver = (event: DragEvent) => {
    if (!event.dataTransfer!.types.includes(DRAGGED)) return;
    event.preventDefault();
    over.value = half(event);
  };
  const drop = (event: DragEvent) => {
    event.preventDefault();
    over.value = "";
    const dragged = Number(event.dataTransfer!.getData(DRAGGED));
    if (dragged !== place) move(dragged, beside(tiers.value, dragged, place, half(event) === "before" ? 0 : 1));
  };
  return (
    <li
      class={`ranked ${over.value}`} data-place={place} tabIndex={ready ? 0 : undefined} draggable={ready}
      aria-label={w("answer", { letter: name })} onKeyDown={keys}
      onDragStart={(event) => event.dataTransfer!.setData(DRAGGED, String(place))}
      onDragOver={ready ? dragOver : undefined} onDragLeave={() => (over.value = "")} onDrop={ready ? drop : undefined}
    >
      <Place {...{ place, rank, tie, ready, move }} />
      <div class="words">
        <h2>{w("answer", { letter: name })}</h2>
        <Text draft={one} />
        <Who place={place} />
      </div>
    </li>
  );
}

/** What a key asks for: a number is a rank, an arrow a step. */
function wanted(key: string, place: number): Tiers | null {
  if (key === "ArrowUp") return step(tiers.value, place, -1);
  if (key === "ArrowDown") return step(tiers.value, place, 1);
  const number = Number(key);
  return number >= 1 && number <= shown.value.length ? put(tiers.value, place, number - 1) : null;
}

/** The rank, as a number to choose, and a step up and down. */
function Place({ place, rank, tie, ready, move }: AnswerProps) {
  const name = letter(place);
  if (!ready) return <div class="rank">{verdict.value && <b>{handedIn.value.length ? rank + 1 : "–"}</b>}</div>;
  const most = Math.min(tiers.value.length + 1, shown.value.length);
  return (
    <div class="rank">
      <button type="button" class="icon" aria-label={w("up", { letter: name })} onClick={() => move(place, step(tiers.value, place, -1))}>
        ↑
      </button>
      <select
        aria-label={w("rankOf", { letter: name })} value={rank}
        onChange={(event) => move(place, put(tiers.value, place, Number(event.currentTarget.value)))}
      >
        {Array.from({ length: most }, (_, index) => (
          <option key={index} value={index}>{index + 1}{index === rank && tie ? " =" : ""}</option>
        ))}
      </select>
      <button type="button" class="icon" aria-label={w("down", { letter: name })} onClick={() => move(place, step(tiers.value, place, 1))}>
        ↓
      </button>
    </div>
  );
}

function Who({ place }: { place: number }) {
  const who = verdict.value?.[place];
  if (!who) return null;
  return (
    <footer>
      <strong>{who.model}</strong>
      <span>{w("temperature")} {figure(who.temperature, 2)}</span>
      <span>{w("seed")} {who.seed}</span>
    </footer>
  );
}

function HandIn() {
  const touched = tiers.value.length > untouched(1).length;
  return (
    <form
      class="hand-in"
      onSubmit={(event) => {
        event.preventDefault();
        void handIn(false);
      }}
    >
      <label class="field wide">
        <span>{w("reason")}</span>
        <input type="text" maxLength={2000} value={reason.value} onInput={(event) => (reason.value = event.currentTarget.value)} />
      </label>
      <div class="acts">
        <button type="button" class="quiet firm" onClick={() => void handIn(true)}>{w("allBad")}</button>
        <button type="submit" class="quiet firm main">{w(touched ? "submit" : "submitTie")}</button>
      </div>
    </form>
  );
}
