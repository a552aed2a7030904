// Which model, how freely it draws its words, and what it is told before every answer.

import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { t } from "./i18n";
import { change, forget, mode, models, settings } from "./state";

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

/** Asks once more before it deletes; leaving the button takes the question back. */
export function ForgetButton({ sign }: { sign: ComponentChildren }) {
  const sure = useSignal(false);
  const press = () => {
    if (sure.value) void forget();
    sure.value = !sure.value;
  };
  return (
    <button
      type="button" class={sure.value ? "icon sure" : "icon"} title={t("forget")}
      aria-label={t(sure.value ? "forgetSure" : "forget")} onClick={press} onBlur={() => (sure.value = false)}
    >
      {sign}
      {sure.value && <span>{t("forgetSure")}</span>}
    </button>
  );
}
