// The page: the list of conversations, a header, the room that is looked at. What it shows comes from state.ts.

import { render } from "preact";
import { Suspense } from "preact/compat";
import { useEffect } from "preact/hooks";
import { locked } from "./account";
import { Composer, Conversation } from "./chat";
import { IconButton, Popup, SureButton } from "./controls";
import { type Key, t } from "./i18n";
import { Login } from "./login";
import { DotsSign, ListSign, NewSign, TuneSign } from "./marks";
import { problem, tell } from "./problem";
import { ROOMS, type Room, place } from "./router";
import { mode } from "./settings";
import { Sidebar, covers, listed, showList } from "./sidebar";
import { busy, forget, load, startOver, stop, talk } from "./state";
import { type Form, download } from "./transfer";
import { Tuning } from "./tuning";
import "./style.css";

function Page() {
  useEffect(() => {
    const escape = (event: KeyboardEvent) => {
      if (event.key !== "Escape") return;
      if (covers()) showList(false);
      else if (busy.value) stop();
    };
    document.addEventListener("keydown", escape);
    return () => document.removeEventListener("keydown", escape);
  }, []);
  const { room } = place.value;
  if (locked.value) return <Login />;
  return (
    <>
      {listed.value && <Sidebar />}
      <div class="room" inert={covers()}>
        <Top room={room} />
        {room ? <OtherRoom room={room} /> : <TalkRoom />}
      </div>
    </>
  );
}

function Top({ room }: { room: Room | null }) {
  return (
    <header class="top">
      <div>
        {!listed.value && (
          <>
            <IconButton label={t("showList")} expanded={false} onPress={() => showList(true)}><ListSign /></IconButton>
            <IconButton label={t("newChat")} onPress={startOver}><NewSign /></IconButton>
          </>
        )}
      </div>
      {room ? <span /> : <Modes />}
      <nav>
        {!room && talk.value.id.value && <More id={talk.value.id.value} />}
        {!room && <Popup id="settings" label={t("settings")} sign={<TuneSign />}><Tuning /></Popup>}
      </nav>
    </header>
  );
}

function Modes() {
  return (
    <div class="segments" role="group">
      {(["chat", "compare"] as const).map((one) => (
        <button type="button" key={one} aria-pressed={mode.value === one} onClick={() => (mode.value = one)}>
          {t(one)}
        </button>
      ))}
    </div>
  );
}

const FORMS: [Form, Key][] = [["markdown", "asMarkdown"], ["json", "asJson"], ["training", "asTraining"]];

function More({ id }: { id: string }) {
  return (
    <Popup id="more" label={t("more")} sign={<DotsSign />}>
      <div class="menu">
        <h2>{t("download")}</h2>
        {FORMS.map(([form, label]) => (
          <button type="button" key={form} class="quiet" onClick={() => void download(talk.value, form).catch(tell)}>
            {t(label)}
          </button>
        ))}
        <hr />
        <SureButton label="forget" question="forgetSure" onSure={() => forget(id)} />
      </div>
    </Popup>
  );
}

function TalkRoom() {
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
    <Suspense fallback={<main aria-busy="true" />}>
      <View />
    </Suspense>
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
