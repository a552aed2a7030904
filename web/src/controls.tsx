// Small things to press that more than one place needs.

import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { type Key, t } from "./i18n";
import { CopySign, DoneSign } from "./marks";

interface Icon {
  label: string;
  disabled?: boolean;
  expanded?: boolean;
  pressed?: boolean;
  controls?: string;
  onPress: () => void;
  children: ComponentChildren;
}

/** A button that shows a sign and says its name to those who cannot see it. */
export function IconButton({ label, disabled, expanded, pressed, controls, onPress, children }: Icon) {
  return (
    <button
      type="button" class="icon" aria-label={label} title={label} disabled={disabled} aria-expanded={expanded}
      aria-pressed={pressed} aria-controls={controls} onClick={onPress}
    >
      {children}
    </button>
  );
}

export function CopyButton({ text }: { text: () => string }) {
  const copied = useSignal(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text());
    copied.value = true;
    setTimeout(() => (copied.value = false), 1500);
  };
  return (
    <IconButton label={t(copied.value ? "copied" : "copy")} onPress={() => void copy()}>
      {copied.value ? <DoneSign /> : <CopySign />}
    </IconButton>
  );
}

interface Sure {
  label: Key;
  question: Key;
  sign?: ComponentChildren;
  onSure: () => Promise<unknown>;
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

interface Popup {
  id: string;
  label: string;
  sign: ComponentChildren;
  children: ComponentChildren;
}

/** A sign that opens a panel below it; Escape, or a press anywhere else, closes it. */
export function Popup({ id, label, sign, children }: Popup) {
  const open = useSignal(false);
  const around = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open.value) return;
    const key = (event: KeyboardEvent) => {
      if (event.key !== "Escape") return;
      event.stopPropagation(); // it closes this panel, and stops nothing
      open.value = false;
      around.current?.querySelector("button")?.focus();
    };
    const press = (event: Event) => {
      if (!around.current!.contains(event.target as Node)) open.value = false;
    };
    document.addEventListener("keydown", key, true);
    document.addEventListener("pointerdown", press);
    return () => {
      document.removeEventListener("keydown", key, true);
      document.removeEventListener("pointerdown", press);
    };
  }, [open.value]);
  return (
    <div class="popup" ref={around}>
      <IconButton label={label} expanded={open.value} controls={id} onPress={() => (open.value = !open.value)}>
        {sign}
      </IconButton>
      {open.value && <div id={id} class="panel" role="region" aria-label={label}>{children}</div>}
    </div>
  );
}
