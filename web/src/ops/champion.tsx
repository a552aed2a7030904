// Who serves, who is tried against it, and what is still needed before one takes the other's place.

import { figure } from "../i18n";
import { type Champion, type Condition, champion } from "./api";
import { Show, useLoaded } from "./load";
import { named, percent, w } from "./words";

export function ChampionView() {
  return (
    <Show of={useLoaded(champion)}>
      {(got) => (
        <>
          {got.trouble && <p class="problem" role="alert">{w("notFollowed", { why: got.trouble })}</p>}
          {got.standing ? <Standing got={got} /> : <p class="note">{w("noChampion")}</p>}
        </>
      )}
    </Show>
  );
}

function Standing({ got: { standing, round, state, votes_needed, conditions } }: { got: Champion }) {
  return (
    <>
      <p>
        {w("champion", { hash: short(standing!.champion), since: when(standing!.since) })}{" "}
        {standing!.candidate && w("candidate", { hash: short(standing!.candidate), share: percent(standing!.share) })}
      </p>
      <p class="note">
        {w("round", { round: round!, state: named(state!) })}
        {votes_needed !== null && votes_needed !== undefined && w("votesNeeded", { n: votes_needed })}
      </p>
      {conditions!.length > 0 && <Conditions rows={conditions!} />}
    </>
  );
}

function Conditions({ rows }: { rows: Condition[] }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-labelledby="champion">
      <table class="figures">
        <thead>
          <tr>
            <th scope="col">{w("condition")}</th>
            <th scope="col" class="number">{w("found")}</th>
            <th scope="col" class="number">{w("needed")}</th>
            <th scope="col">{w("verdict")}</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((one) => (
            <tr key={one.what} title={one.note}>
              <th scope="row">{named(one.what)}</th>
              <td class="number">{one.value === null ? "–" : figure(one.value, 3)}</td>
              <td class="number">{one.needed}</td>
              <td>{w(one.met ? "met" : "notMet")}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const short = (hash: string): string => hash.slice(0, 8);
const when = (time: string): string => new Date(time).toLocaleString();
