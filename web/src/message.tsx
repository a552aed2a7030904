// A message: what was asked, or an answer as it is written; its versions, and what can be done with it.

import { useSignal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { CopyButton, IconButton } from "./controls";
import { type Key, figure, t } from "./i18n";
import { AgainSign, EditSign, Furnace, InfoSign, NextSign, PreviousSign } from "./marks";
import { again, busy, edit, editing, show, talk } from "./state";
import { Text } from "./text";
import { Thumbs, Why } from "./thumbs";
import { versions } from "./tree";
import type { Node, Told } from "./turns";

export function Question({ node }: { node: Node }) {
  if (editing.value === node) return <Editor node={node} />;
  return (
    <div class="asked">
      <div class="prompt">
        <span class="unseen">{t("you")}</span>
        <p>{node.text.value}</p>
      </div>
      <div class="tools">
        <Versions node={node} />
        <CopyButton text={() => node.text.value} />
        <IconButton label={t("edit")} disabled={busy.value} onPress={() => (editing.value = node)}><EditSign /></IconButton>
      </div>
    </div>
  );
}

/** The message in a box of its own: sent, it becomes another version, and the old one stays. */
function Editor({ node }: { node: Node }) {
  const box = useRef<HTMLTextAreaElement>(null);
  const text = useSignal(node.text.value);
  useLayoutEffect(() => {
    box.current!.focus();
    box.current!.setSelectionRange(text.value.length, text.value.length);
  }, []);
  useLayoutEffect(() => {
    box.current!.style.height = "auto";
    box.current!.style.height = `${box.current!.scrollHeight}px`;
  }, [text.value]);
  const leave = () => (editing.value = null);
  const key = (event: KeyboardEvent) => {
    if (event.key === "Escape") leave();
    if (!sends(event)) return;
    event.preventDefault();
    void edit(node, text.value);
  };
  return (
    <form class="editor" onSubmit={(event) => (event.preventDefault(), void edit(node, text.value))}>
      <textarea
        ref={box} rows={1} aria-label={t("editing")} value={text.value} onKeyDown={key}
        onInput={(event) => (text.value = event.currentTarget.value)}
      />
      <div class="tools">
        <button type="button" class="quiet" onClick={leave}>{t("cancel")}</button>
        <button type="submit" class="quiet firm" disabled={!text.value.trim() || busy.value}>{t("send")}</button>
      </div>
    </form>
  );
}

/** Whether a key sends: Enter does, but never the Enter that ends a word in an input method. */
export function sends(event: KeyboardEvent): boolean {
  const composing = event.isComposing || event.keyCode === 229; // 229: Safari's Enter that ends a composition
  return event.key === "Enter" && !event.shiftKey && !composing;
}

/** What of the conversation the model did not read before it answered, and what it read instead. */
export function Unread({ told }: { told: Told }) {
  const { left_out, note } = told;
  return (
    <>
      {note && (
        <details class="note">
          <summary>{t("noted", { n: note.messages })}</summary>
          <blockquote>{note.text}</blockquote>
        </details>
      )}
      {left_out ? <p class="note">{t("leftOut")}</p> : null}
    </>
  );
}

export function Reply({ node, asked }: { node: Node; asked: Node | null }) {
  const writing = node.progress.value === "writing";
  return (
    <article class="answer" aria-label={t("answer")} aria-busy={writing}>
      <Furnace lit={writing} />
      <div class="said">
        <Text draft={node} />
        {!writing && <ReplyTools node={node} asked={asked} />}
      </div>
    </article>
  );
}

function ReplyTools({ node, asked }: { node: Node; asked: Node | null }) {
  const about = useSignal(false);
  const why = useSignal(false);
  return (
    <>
      <div class="tools">
        <Versions node={node} />
        <CopyButton text={() => node.text.value} />
        {asked && (
          <IconButton label={t("again")} disabled={busy.value} onPress={() => void again(asked)}><AgainSign /></IconButton>
        )}
        {node.id.value && <Thumbs node={node} onPress={() => (why.value = true)} />}
        <IconButton label={t("about")} expanded={about.value} onPress={() => (about.value = !about.value)}>
          <InfoSign />
        </IconButton>
        <span class="brief">{brief(node.told.value).join(" · ")}</span>
      </div>
      {why.value && <Why node={node} onDone={() => (why.value = false)} />}
      {about.value && <About told={node.told.value} />}
    </>
  );
}

/** A question that nobody answered: the page was closed before the first word, or the server refused. */
export function Unanswered({ asked }: { asked: Node }) {
  return (
    <p class="note unanswered">
      {t("unanswered")}
      <button type="button" class="quiet firm" onClick={() => void again(asked)}>{t("again")}</button>
    </p>
  );
}

function Versions({ node }: { node: Node }) {
  const all = versions(talk.value.nodes.value, node);
  if (all.length < 2) return null;
  const at = all.indexOf(node);
  const go = (to: number) => show(all[to]!);
  return (
    <span class="versions" role="group" aria-label={t("version", { n: at + 1, all: all.length })}>
      <IconButton label={t("previous")} disabled={at === 0} onPress={() => go(at - 1)}><PreviousSign /></IconButton>
      <span aria-hidden="true">{at + 1}/{all.length}</span>
      <IconButton label={t("next")} disabled={at === all.length - 1} onPress={() => go(at + 1)}><NextSign /></IconButton>
    </span>
  );
}

/** What was measured: of an answer that was only put into the conversation, the server has noughts. */
function brief({ usage, seconds }: Told): string[] {
  return [
    usage?.completion_tokens && t("tokens", { n: figure(usage.completion_tokens) }),
    seconds && t("seconds", { n: figure(seconds, 1) }),
  ].filter((word) => typeof word === "string");
}

const ENDS: Record<string, Key> = {
  stop: "endedStop", length: "endedLength", content_filter: "endedFilter", stopped: "endedStopped",
};

function About({ told }: { told: Told }) {
  const rows = details(told).filter((row): row is [string, string | number] => row[1] !== undefined);
  return (
    <dl class="about">
      {rows.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function details(told: Told): [string, string | number | undefined][] {
  const { usage, seconds, wait, seed, model, model_hash, finish_reason, sampling } = told;
  const tokens = (n?: number) => (!n ? undefined : t("tokens", { n: figure(n) }));
  const time = (s?: number) => (!s ? undefined : t("seconds", { n: figure(s, 2) }));
  const speed = seconds && usage ? usage.completion_tokens / seconds : undefined;
  const end = ENDS[finish_reason ?? ""];
  const drawn = (name: string) => sampling?.[name] as number | undefined;
  return [
    [t("model"), [model, model_hash?.slice(0, 12)].filter(Boolean).join(" · ") || undefined],
    [t("read"), tokens(usage?.prompt_tokens)],
    [t("written"), tokens(usage?.completion_tokens)],
    [t("firstWords"), time(wait)],
    [t("whole"), time(seconds)],
    [t("speed"), speed && t("perSecond", { n: figure(speed, 1) })],
    [t("temperature"), drawn("temperature")],
    [t("topP"), drawn("top_p")],
    [t("seed"), seed],
    [t("ended"), end && t(end)],
  ];
}
