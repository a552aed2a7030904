// What the safety filters set aside for a person to look at: harmless, to be deleted, or of which kind it is.

import { useSignal } from "@preact/signals";
import { type Flagged, decide, flagged } from "./api";
import { Show, sentence, useLoaded } from "./load";
import { moment, w } from "./words";

export function Queue() {
  const queue = useLoaded(flagged);
  return (
    <Show of={queue}>
      {({ events, categories }) =>
        events.length ? (
          <ul class="votes">
            {events.map((event) => (
              <Waiting key={event.id} event={event} categories={categories} onDone={queue.ask} />
            ))}
          </ul>
        ) : (
          <p class="note">{w("queueEmpty")}</p>
        )
      }
    </Show>
  );
}

interface WaitingProps {
  event: Flagged;
  categories: Record<string, string>;
  onDone: () => Promise<void>;
}

function Waiting({ event, categories, onDone }: WaitingProps) {
  const label = useSignal(event.category);
  const problem = useSignal("");
  const act = async (decision: "approve" | "redact" | "label") => {
    try {
      await decide(event.id, decision, decision === "label" ? label.value : "");
      await onDone();
    } catch (error) {
      problem.value = sentence(error);
    }
  };
  const kinds = { ...categories, ...(event.category in categories ? {} : { [event.category]: event.category }) };
  return (
    <li>
      <blockquote>{event.text}</blockquote>
      <p class="line note">
        <strong>{categories[event.category] ?? event.category}</strong>
        <span>{w(event.stage === "prompt" ? "ofPrompt" : "ofAnswer")}</span>
        <span>{event.scanner} {event.score.toFixed(2)}</span>
        <time dateTime={event.time}>{moment(event.time)}</time>
      </p>
      {problem.value && <p class="problem" role="alert">{problem.value}</p>}
      <div class="bar-of-acts">
        <button type="button" class="quiet firm" onClick={() => void act("approve")}>{w("approve")}</button>
        <button type="button" class="quiet firm" onClick={() => void act("redact")}>{w("redact")}</button>
        <label class="field">
          <span>{w("label")}</span>
          <select value={label.value} onChange={(change) => (label.value = change.currentTarget.value)}>
            {Object.entries(kinds).map(([id, name]) => (
              <option key={id} value={id}>{name}</option>
            ))}
          </select>
        </label>
        <button type="button" class="quiet firm" onClick={() => void act("label")}>{w("setLabel")}</button>
      </div>
    </li>
  );
}
