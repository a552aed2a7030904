// The page: header, conversation, box. Everything it shows comes from state.ts.

import { useSignal } from "@preact/signals";
import { render } from "preact";
import { Suspense } from "preact/compat";
import { useEffect } from "preact/hooks";
import { Composer, Conversation } from "./chat";
import { switchLanguage, t } from "./i18n";
import { BinSign, Furnace, NewSign, TuneSign } from "./marks";
import { busy, forget, load, mode, problem, startOver, stop, turns } from "./state";
import { ROOMS, type Room, place } from "./router";
import { SettingsPanel, SureButton } from "./settings";
import "./style.css";

function Page() {
  const tuning = useSignal(false);
  useEffect(() => {
    const escape = (event: KeyboardEvent) => {
      if (event.key !== "Escape") return;
      if (busy.value) stop();
      else tuning.value = false;
    };
    document.addEventListener("keydown", escape);
    return () => document.removeEventListener("keydown", escape);
  }, []);
  return (
    <>
      <header class="top">
        <a class="brand" href="#/" aria-label={t("brand")}>
          <Furnace />
          <span>{t("brand")}</span>
        </a>
        <Modes />
        <nav>
          {(Object.keys(ROOMS) as Room[]).map((room) => (
            <a key={room} class="quiet" href={`#/${room}`} aria-current={place.value.room === room ? "page" : undefined}>
              {t(room)}
            </a>
          ))}
          <button type="button" class="icon" aria-label={t("newChat")} title={t("newChat")} onClick={startOver}>
            <NewSign />
          </button>
          {turns.value.length > 0 && (
            <SureButton label="forget" question="forgetSure" sign={<BinSign />} onSure={forget} />
          )}
          <button
            type="button" class="icon" aria-label={t("settings")} title={t("settings")} aria-expanded={tuning.value}
            aria-controls="settings" onClick={() => (tuning.value = !tuning.value)}
          >
            <TuneSign />
          </button>
          <button type="button" class="quiet" onClick={switchLanguage}>{t("otherLanguage")}</button>
        </nav>
        {tuning.value && <SettingsPanel />}
      </header>
      {place.value.room ? <OtherRoom room={place.value.room} /> : <Talk />}
    </>
  );
}

function Talk() {
  return (
    <>
      <Conversation />
      <div class="bottom">
        {problem.value && <Problem text={problem.value} />}
        <Composer />
      </div>
    </>
  );
}

function OtherRoom({ room }: { room: Room }) {
  const View = ROOMS[room];
  return (
    <Suspense fallback={<main class="room" aria-busy="true" />}>
      <View />
    </Suspense>
  );
}

function Modes() {
  return (
    <div class="modes" role="group">
      {(["chat", "compare"] as const).map((one) => (
        <button type="button" key={one} aria-pressed={mode.value === one} onClick={() => (mode.value = one)}>
          {t(one)}
        </button>
      ))}
    </div>
  );
}

function Problem({ text }: { text: string }) {
  return (
    <div class="problem" role="alert">
      <p>{text}</p>
      <button type="button" class="quiet" onClick={() => (problem.value = null)}>{t("dismiss")}</button>
    </div>
  );
}

void load();
render(<Page />, document.getElementById("page")!);
