// Which model, how freely it draws its words, what it is told before every answer; and taking one's words back.

import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { type Key, t } from "./i18n";
import { change, forgetAll, forgotten, mode, models, settings } from "./state";

const OUTCOMES = { all: "forgottenAll", some: "forgottenSome" } as const;

export function SettingsPanel() {
  const { model, against, temperature, top_p, max_tokens, system } = settings.value;
  return (
    <div id="settings" class="settings" role="region" aria-label={t("settings")}>
      <Pick label={t("model")} value={model} onPick={(name) => change({ model: name })} />
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
      <label class="wide">
        <span>{t("system")}</span>
        <textarea
          rows={2} placeholder={t("systemHint")} value={system}
          onChange={(event) => change({ system: event.currentTarget.value })}
        />
      </label>
      <div class="wide">
        <SureButton label="forgetAll" question="forgetAllSure" onSure={forgetAll} />
        <p class="note" role="status">{forgotten.value && t(OUTCOMES[forgotten.value])}</p>
      </div>
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

interface Sure {
  label: Key;
  question: Key;
  sign?: ComponentChildren;
  onSure: () => Promise<void>;
}

/** Asks once more before it does what cannot be undone; leaving the button takes the question back. */
export function SureButton({ label, question, sign, onSure }: Sure) {
  const sure = useSignal(false);
  const press = () => {
    if (sure.value) void onSure();
    sure.value = !sure.value;
  };
  const words = t(sure.value ? question : label);
  return (
    <button
      type="button" class={`${sign ? "icon" : "quiet"} ${sure.value ? "sure" : ""}`} title={t(label)}
      aria-label={words} onClick={press} onBlur={() => (sure.value = false)}
    >
      {sign}
      {(sure.value || !sign) && <span>{words}</span>}
    </button>
  );
}
