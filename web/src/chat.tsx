// The conversation: messages on the way that is shown, and the box to write in.

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { Announcer } from "./announce";
import { ComparisonView } from "./compare";
import { SUGGESTIONS, language, t } from "./i18n";
import { Furnace, SendSign, StopSign } from "./marks";
import { Question, Reply, Unanswered, Unread, sends } from "./message";
import { mode, starters } from "./settings";
import { busy, draft, editing, opening, send, stop, talk } from "./state";
import type { Comparison, Node } from "./turns";

/** The log. It follows the text down while the reader is at its end, and stays put while they read further up. */
export function Conversation() {
  const place = useRef<HTMLElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  useEffect(() => {
    const scroller = place.current!;
    const look = () => {
      atEnd.current = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
    };
    const grown = new ResizeObserver(() => {
      if (atEnd.current) scroller.scrollTop = scroller.scrollHeight;
    });
    scroller.addEventListener("scroll", look, { passive: true });
    grown.observe(inner.current!);
    return () => {
      scroller.removeEventListener("scroll", look);
      grown.disconnect();
    };
  }, []);
  const way = talk.value.way.value;
  const asking = busy.value;
  useLayoutEffect(() => {
    atEnd.current = true; // another conversation, or somebody just asked something: both are read from the end
    place.current!.scrollTop = place.current!.scrollHeight;
  }, [talk.value, asking]);
  return (
    <main ref={place} tabIndex={-1}>
      <div ref={inner} class="column talk" role="log" aria-live="off" aria-label={t("conversation")} aria-busy={asking}>
        {way.length === 0 && !opening.value && <Welcome />}
        <Turns way={way} />
      </div>
      <Announcer />
    </main>
  );
}

/** Each question with its answer, or with the two that were compared. */
function Turns({ way }: { way: readonly Node[] }) {
  const { comparisons } = talk.value;
  const last = way.at(-1);
  return way.map((node, at) => {
    const next = way[at + 1];
    if (node.role === "assistant") {
      const asked = way[at - 1] ?? null;
      const shown = asked && shownBeside(comparisons.value.get(asked.key), node);
      if (shown) return null;
      return (
        <section key={node.key} class="turn">
          <Unread told={node.told.value} />
          <Reply node={node} asked={asked} />
        </section>
      );
    }
    const comparison = shownBeside(comparisons.value.get(node.key), next);
    return (
      <section key={node.key} class={next && !comparison ? "turn asks" : "turn"}>
        <Question node={node} />
        {comparison && <ComparisonView comparison={comparison} last={node === last} />}
        {!comparison && node === last && !busy.value && <Unanswered asked={node} />}
      </section>
    );
  });
}

/** The comparison, if it is what leads to `next`: another version of the answer may be shown instead. */
function shownBeside(comparison: Comparison | undefined, next: Node | undefined): Comparison | null {
  return comparison && comparison.answer.value === (next?.key ?? null) ? comparison : null;
}

function Welcome() {
  const comparing = mode.value === "compare";
  return (
    <section class="welcome">
      <Furnace lit />
      <h1>{t(comparing ? "greetingCompare" : "greeting")}</h1>
      <p>{t(comparing ? "greetingCompareMore" : "greetingMore")}</p>
      <div class="suggestions">
        {(starters.value.length ? starters.value : SUGGESTIONS[language.value]).map((text) => (
          <button type="button" key={text} onClick={() => void send(text)}>
            {text}
          </button>
        ))}
      </div>
    </section>
  );
}

/** The box to write in; in an empty one, the arrow up goes to the last message. */
export function Composer() {
  const box = useRef<HTMLTextAreaElement>(null);
  const undecided = talk.value.undecided.value !== null;
  useEffect(() => {
    box.current!.style.height = "auto";
    box.current!.style.height = `${box.current!.scrollHeight}px`;
  }, [draft.value]);
  // Before the next paint: a key pressed as soon as the box can be seen to be free belongs to the box.
  useLayoutEffect(() => {
    const touch = !matchMedia("(hover: hover)").matches; // focus would open the keyboard over what was just written
    if (!busy.value && !undecided && !editing.value && !touch) box.current!.focus({ preventScroll: true });
  }, [busy.value, undecided, editing.value, talk.value]);
  const key = (event: KeyboardEvent) => {
    if (event.key === "ArrowUp" && !draft.value && !busy.value) {
      editing.value = talk.value.way.value.findLast(({ role }) => role === "user") ?? null;
    }
    if (!sends(event)) return;
    event.preventDefault();
    void send(draft.value);
  };
  return (
    <form class="composer" onSubmit={(event) => (event.preventDefault(), void send(draft.value))}>
      <div class="box">
        <label class="unseen" for="draft">{t("ask")}</label>
        <textarea
          id="draft" ref={box} rows={1} placeholder={t("askHint")} value={draft.value} onKeyDown={key}
          onInput={(event) => (draft.value = event.currentTarget.value)} aria-describedby="keys"
        />
        {busy.value ? (
          <button type="button" class="seal" aria-label={t("stop")} title={t("stop")} onClick={stop}><StopSign /></button>
        ) : (
          <button type="submit" class="seal" aria-label={t("send")} title={t("send")} disabled={!draft.value.trim()}>
            <SendSign />
          </button>
        )}
      </div>
      <p id="keys" class="keys">{t("keys")}</p>
    </form>
  );
}
