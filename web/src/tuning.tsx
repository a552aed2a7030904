// Which model, how freely it draws its words, what it is told before every answer; how the page looks; one's own data.

import { useSignal } from "@preact/signals";
import { SureButton } from "./controls";
import { type Key, t } from "./i18n";
import { refresh } from "./list";
import { LogOut } from "./login";
import { tell } from "./problem";
import { type Theme, change, mode, models, pick, settings, summarises, theme } from "./settings";
import { forgetAll, instruct, talk } from "./state";
import { downloadAll, upload } from "./transfer";

const THEMES: [Theme, Key][] = [["system", "themeSystem"], ["light", "themeLight"], ["dark", "themeDark"]];

export function Tuning() {
  const { model, against, temperature, top_p, max_tokens, system } = settings.value;
  const here = talk.value.id.value !== null;
  return (
    <div class="settings">
      <Pick label={t("model")} value={model} onPick={pick} />
      {mode.value === "compare" && (
        <Pick label={t("against")} value={against} none={t("itself")} onPick={(name) => change({ against: name })} />
      )}
      <Slide
        label={t("temperature")} value={temperature} min={0} max={2} step={0.1}
        onSlide={(value) => change({ temperature: value })}
      />
      <Slide label={t("topP")} value={top_p} min={0.05} max={1} step={0.05} onSlide={(value) => change({ top_p: value })} />
      <label>
        <span>{t("maxTokens")}</span>
        <input
          type="number" min={1} step={1} inputMode="numeric" placeholder={t("noLimit")} value={max_tokens || ""}
          onChange={(event) => change({ max_tokens: Math.max(0, Math.trunc(event.currentTarget.valueAsNumber || 0)) })}
        />
      </label>
      <label>
        <span>{t("tooLong")}</span>
        <select
          value={String(summarises())}
          onChange={(event) => change({ summarise: event.currentTarget.value === "true" })}
        >
          <option value="false">{t("tooLongLeave")}</option>
          <option value="true">{t("tooLongNote")}</option>
        </select>
      </label>
      <label class="wide">
        <span>{t(here ? "systemHere" : "system")}</span>
        <textarea
          rows={2} placeholder={t("systemHint")} value={here ? talk.value.system.value : system}
          onChange={(event) => void instruct(event.currentTarget.value)}
        />
      </label>
      <fieldset class="wide">
        <legend>{t("appearance")}</legend>
        <div class="segments">
          {THEMES.map(([name, label]) => (
            <button type="button" key={name} aria-pressed={theme.value === name} onClick={() => (theme.value = name)}>
              {t(label)}
            </button>
          ))}
        </div>
      </fieldset>
      <Data />
      <LogOut />
    </div>
  );
}

function Data() {
  const done = useSignal("");
  const importing = async (input: HTMLInputElement) => {
    const file = input.files?.[0];
    if (!file) return;
    try {
      const n = await upload(file);
      await refresh();
      done.value = n === null ? t("noImport") : t("imported", { n });
    } catch (error) {
      tell(error);
      await refresh(); // what came in before it broke off is there
    }
    input.value = ""; // so that the same file can be chosen again
  };
  return (
    <div class="wide data">
      <button type="button" class="quiet" onClick={() => void downloadAll().catch(tell)}>{t("exportAll")}</button>
      <label class="quiet">
        {t("importAll")}
        <input
          type="file" class="unseen" accept=".json,application/json"
          onChange={(event) => void importing(event.currentTarget)}
        />
      </label>
      <SureButton
        label="forgetAll" question="forgetAllSure"
        onSure={async () => (done.value = (await forgetAll()) ? t("forgottenAll") : "")}
      />
      <p class="note" role="status">{done.value}</p>
    </div>
  );
}

function Pick(props: { label: string; value: string; none?: string; onPick: (name: string) => void }) {
  return (
    <label>
      <span>{props.label}</span>
      <select value={props.value} onChange={(event) => props.onPick(event.currentTarget.value)}>
        {props.none && <option value="">{props.none}</option>}
        {models.value.map(({ id }) => (
          <option key={id} value={id}>{id}</option>
        ))}
      </select>
    </label>
  );
}

interface Range {
  label: string;
  value: number;
  min: number;
  max: number;
  step: number;
  onSlide: (value: number) => void;
}

function Slide({ label, value, min, max, step, onSlide }: Range) {
  return (
    <label>
      <span>
        {label} <b>{value}</b>
      </span>
      <input
        type="range" min={min} max={max} step={step} value={value}
        onInput={(event) => onSlide(event.currentTarget.valueAsNumber)}
      />
    </label>
  );
}
