// The conversations that the server keeps: find one, open it, name it, delete it; and the way to the other rooms.

import { signal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Summary } from "./api";
import { IconButton, SureButton } from "./controls";
import { type Key, language, switchLanguage, t } from "./i18n";
import { conversations, more, older, refresh, rename, search } from "./list";
import { BinSign, EditSign, Furnace, ListSign, NewSign } from "./marks";
import { recall, remember } from "./memory";
import { ROOMS, type Room, place } from "./router";
import { busyIds, forget, startOver, talk } from "./state";

/** Where there is no room for it beside the conversation, the list lies above it and goes once something is chosen. */
const narrow = matchMedia("(max-width: 56rem)");
const PAUSE = 200; // milliseconds without a key before the server is asked

export const listed = signal(!narrow.matches && recall("list", true));
narrow.addEventListener("change", () => (listed.value = !narrow.matches && recall("list", true)));

export function showList(shown: boolean): void {
  listed.value = shown;
  if (!narrow.matches) remember("list", shown);
}

/** Whether the list lies above the rest, which nobody can reach then. */
export function covers(): boolean {
  return listed.value && narrow.matches;
}

export function chosen(): void {
  if (narrow.matches) listed.value = false;
}

export function Sidebar() {
  const inner = useRef<HTMLElement>(null);
  useEffect(() => {
    if (narrow.matches) inner.current!.querySelector<HTMLElement>("button")!.focus();
  }, []);
  return (
    <>
      <aside id="list" class="sidebar" ref={inner} aria-label={t("conversations")}>
        <div class="head">
          <a class="brand" href="#/" onClick={chosen}>
            <Furnace />
            <span>{t("brand")}</span>
          </a>
          <IconButton label={t("hideList")} expanded controls="list" onPress={() => showList(false)}><ListSign /></IconButton>
        </div>
        <button type="button" class="new" onClick={() => (startOver(), chosen())}>
          <NewSign />
          {t("newChat")}
        </button>
        <Search />
        <List />
        <nav class="foot" aria-label={t("rooms")}>
          {(Object.keys(ROOMS) as Room[]).map((room) => (
            <a
              key={room} class="quiet" href={`#/${room}`} onClick={chosen}
              aria-current={place.value.room === room ? "page" : undefined}
            >
              {t(room)}
            </a>
          ))}
          <button type="button" class="quiet" lang={language.value === "zh" ? "en" : "zh-Hans"} onClick={switchLanguage}>
            {t("otherLanguage")}
          </button>
        </nav>
      </aside>
      {narrow.matches && <div class="veil" onClick={() => showList(false)} />}
    </>
  );
}

function Search() {
  const timer = useRef(0);
  const look = (words: string) => {
    search.value = words;
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => void refresh(), PAUSE);
  };
  return (
    <input
      type="search" class="search" aria-label={t("search")} placeholder={t("search")} value={search.value}
      onInput={(event) => look(event.currentTarget.value)}
    />
  );
}

function List() {
  if (!conversations.value.length) return <p class="list note">{t(search.value ? "nothingFound" : "nothingYet")}</p>;
  const groups = Map.groupBy(conversations.value, ({ updated }) => age(new Date(updated), new Date()));
  return (
    <nav class="list" aria-label={t("conversations")}>
      {[...groups].map(([label, group]) => (
        <section key={label}>
          <h2>{t(label)}</h2>
          <ul>
            {group.map((one) => (
              <Item key={one.id} one={one} />
            ))}
          </ul>
        </section>
      ))}
      {more.value && <button type="button" class="quiet" onClick={() => void older()}>{t("older")}</button>}
    </nav>
  );
}

function age(then: Date, now: Date): Key {
  const midnight = (date: Date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
  const days = Math.round((midnight(now) - midnight(then)) / 86_400_000);
  if (days <= 0) return "today";
  if (days === 1) return "yesterday";
  return days < 7 ? "week" : "earlier";
}

function Item({ one }: { one: Summary }) {
  const naming = useSignal(false);
  const current = talk.value.id.value === one.id && place.value.room === null;
  const title = one.title || t("untitled");
  if (naming.value) return <li><Naming one={one} done={() => (naming.value = false)} /></li>;
  return (
    <li class={current ? "item current" : "item"}>
      <a href={`#/c/${one.id}`} title={title} aria-current={current ? "page" : undefined} onClick={chosen}>
        {busyIds.value.has(one.id) && <span class="ember" role="img" aria-label={t("writingHere")} />}
        {title}
      </a>
      <span class="acts">
        <IconButton label={t("rename")} onPress={() => (naming.value = true)}><EditSign /></IconButton>
        <SureButton label="remove" question="removeSure" sign={<BinSign />} onSure={() => forget(one.id)} />
      </span>
    </li>
  );
}

/** Enter or leaving the box gives the name, Escape leaves it as it was. */
function Naming({ one, done }: { one: Summary; done: () => void }) {
  const box = useRef<HTMLInputElement>(null);
  const left = useRef(false);
  useEffect(() => box.current!.select(), []);
  const name = async () => {
    if (left.current) return;
    left.current = true;
    const title = box.current!.value;
    if (title !== one.title && (await rename(one.id, title)) && talk.value.id.value === one.id) talk.value.title.value = title.trim();
    done();
  };
  const key = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.isComposing) void name();
    if (event.key !== "Escape") return;
    event.stopPropagation();
    left.current = true;
    done();
  };
  return (
    <input
      ref={box} class="naming" aria-label={t("newTitle")} defaultValue={one.title} maxLength={200} onKeyDown={key}
      onBlur={() => void name()}
    />
  );
}
