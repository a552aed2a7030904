// Two answers side by side, who wrote them hidden; the vote; then who they were.

import { useEffect, useRef } from "preact/hooks";
import type { Choice, Side } from "./api";
import { type Key, t } from "./i18n";
import { vote } from "./state";
import { Text } from "./text";
import { type Comparison, kept } from "./turns";

const SIDES: Side[] = ["left", "right"];
const CHOICES: [Choice, Key][] = [
  ["left", "voteLeft"],
  ["tie", "voteTie"],
  ["both_bad", "voteBad"],
  ["right", "voteRight"],
];

export function ComparisonView({ comparison, last }: { comparison: Comparison; last: boolean }) {
  const choice = comparison.choice.value;
  return (
    <div class="comparison">
      {comparison.leftOut.value > 0 && <p class="note">{t("leftOut")}</p>}
      <div class="sides">
        {SIDES.map((side) => (
          <SideView key={side} comparison={comparison} side={side} />
        ))}
      </div>
      {comparison.id.value && !choice && last && <Ballot comparison={comparison} />}
      {comparison.counted.value && choice && <p class="thanks" role="status">{t(thanks(choice))}</p>}
    </div>
  );
}

function SideView({ comparison, side }: { comparison: Comparison; side: Side }) {
  const one = comparison[side];
  const voted = comparison.counted.value;
  const chosen = voted && comparison.choice.value === side;
  const dropped = voted && kept(comparison) !== side;
  const classes = ["side", chosen && "chosen", dropped && "dropped"].filter(Boolean).join(" ");
  return (
    <article class={classes} aria-label={t(side)} aria-busy={one.progress.value === "writing"}>
      <header>
        <h2>{t(side)}</h2>
        {chosen && <span class="stamp" role="img" aria-label={t("chosen")}>{t("seal")}</span>}
      </header>
      <Text draft={one} />
      <Identity comparison={comparison} side={side} />
    </article>
  );
}

function Identity({ comparison, side }: { comparison: Comparison; side: Side }) {
  const who = comparison.verdict.value?.[side];
  if (!who) return null;
  return (
    <footer>
      <strong>{who.model}</strong>
      <span>{t("temperature")} {who.temperature}</span>
      <span>{t("seed")} {who.seed}</span>
    </footer>
  );
}

function Ballot({ comparison }: { comparison: Comparison }) {
  // The group takes the focus, not its first button: a highlighted choice would be a recommendation.
  const group = useRef<HTMLDivElement>(null);
  useEffect(() => group.current?.focus({ preventScroll: true }), []);
  return (
    <div class="ballot" ref={group} tabIndex={-1} role="group" aria-label={t("votes")}>
      <p>{t("votes")}</p>
      <div class="choices">
        {CHOICES.map(([choice, label]) => (
          <button type="button" key={choice} class={`vote ${choice}`} onClick={() => void vote(comparison, choice)}>
            {t(label)}
          </button>
        ))}
      </div>
      <p class="note">{t("voteSkip")}</p>
    </div>
  );
}

function thanks(choice: Choice): Key {
  if (choice === "tie") return "thanksTie";
  return choice === "both_bad" ? "thanksBad" : "thanksSide";
}
