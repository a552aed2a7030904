// Ratings of the models with their intervals, and whether people agree.

import { figure } from "../i18n";
import { type Rating, type Ratings, ratings } from "./api";
import { Show, useLoaded } from "./load";
import { percent, w } from "./words";

export function RatingsView() {
  return (
    <Show of={useLoaded(ratings)}>
      {(got) => (
        <>
          {got.models.length ? <Table got={got} /> : <p class="note">{w("noVotes")}</p>}
          {got.votes > 0 && <Agreement got={got} />}
        </>
      )}
    </Show>
  );
}

function Table({ got }: { got: Ratings }) {
  // Few judgements make intervals that look sure of themselves: below what the verdict wants none is drawn.
  const settled = got.models.filter(({ judgements }) => judgements >= got.enough);
  const reach = Math.max(...settled.flatMap(({ low, high }) => [Math.abs(low ?? 0), Math.abs(high ?? 0)]), 1);
  return (
    <>
      <p class="note">{w("ratingsMore", { anchor: got.anchor! })}</p>
      <div class="scroll" tabIndex={0} role="region" aria-labelledby="ratings">
        <table class="figures">
          <thead>
            <tr>
              <th scope="col">{w("model")}</th>
              <th scope="col" class="number">{w("points")}</th>
              <th scope="col" class="range">{w("interval")}</th>
              <th scope="col" class="number">{w("equalLength")}</th>
              <th scope="col" class="number">{w("wins")}</th>
              <th scope="col" class="number">{w("ties")}</th>
              <th scope="col" class="number">{w("losses")}</th>
              <th scope="col" class="number">{w("share")}</th>
              <th scope="col">{w("verdict")}</th>
            </tr>
          </thead>
          <tbody>
            {got.models.map((one) => (
              <tr key={one.model_hash}>
                <th scope="row">{one.model}</th>
                <td class="number">{signed(one.points)}</td>
                <td class="range">{settled.includes(one) && <Range rating={one} reach={reach} />}</td>
                <td class="number">{signed(one.at_equal_length)}</td>
                <td class="number">{one.wins}</td>
                <td class="number">{one.ties}</td>
                <td class="number">{one.losses}</td>
                <td class="number">{one.share === null ? "–" : percent(one.share)}</td>
                <td>{verdict(one, got.anchor!)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {settled.length > 0 && got.length && (got.length.low > 0 || got.length.high < 0) && (
        <p class="note">
          {w("lengthWorth", { value: signed(got.length.worth, 2), which: w(got.length.worth > 0 ? "longer" : "shorter") })}
        </p>
      )}
    </>
  );
}

/** The interval as a line beside zero. */
function Range({ rating: { points, low, high, decided }, reach }: { rating: Rating; reach: number }) {
  if (points === null || low === null || high === null) return null;
  const x = (value: number) => 100 + (95 * value) / reach;
  return (
    <svg viewBox="0 0 200 20" preserveAspectRatio="none" role="img" aria-label={`${signed(low)} … ${signed(high)}`}>
      <line class="zero" x1="100" x2="100" y1="0" y2="20" vector-effect="non-scaling-stroke" />
      <line
        class={decided ? "span decided" : "span"} x1={x(low)} x2={x(high)} y1="10" y2="10"
        vector-effect="non-scaling-stroke"
      />
      <line class={decided ? "span decided" : "span"} x1={x(points)} x2={x(points)} y1="4" y2="16" vector-effect="non-scaling-stroke" />
    </svg>
  );
}

function verdict(rating: Rating, anchor: string): string {
  if (rating.points === null) return w("apart");
  if (rating.model === anchor) return w("anchorIs");
  return w(rating.decided ? (rating.points > 0 ? "better" : "worse") : "undecided");
}

function Agreement({ got: { agreement, left, again, conduct } }: { got: Ratings }) {
  const placeDecides = left.low > 0.5 || left.high < 0.5;
  const floods = conduct.most.filter((one) => one.flooding);
  return (
    <>
      <h3>{w("agreement")}</h3>
      {agreement ? (
        <p>
          {w("agreementMore", {
            comparisons: agreement.comparisons, raters: agreement.raters, same: percent(agreement.same),
            low: percent(agreement.same_interval[0]), high: percent(agreement.same_interval[1]),
          })}{" "}
          {agreement.alpha !== null && agreement.alpha_interval && w("alpha", {
            alpha: figure(agreement.alpha, 2),
            low: figure(agreement.alpha_interval[0], 2), high: figure(agreement.alpha_interval[1], 2),
          })}
        </p>
      ) : (
        <p class="note">{w("noAgreement")}</p>
      )}
      {left.of > 0 && (
        <p>
          {w("place", { times: left.times, of: left.of, low: percent(left.low), high: percent(left.high) })}{" "}
          {placeDecides && w("placeYes")}
        </p>
      )}
      {again && <p>{w("shownAgain", { of: again.comparisons, same: again.same, place: again.same_place })}</p>}
      <p>{w("conduct", { raters: conduct.raters, twice: conduct.duplicates, against: conduct.contradictions })}</p>
      {floods.map((one) => (
        <p key={one.rater}>{w("floods", { rater: one.rater, busiest: one.busiest, share: percent(one.share) })}</p>
      ))}
    </>
  );
}

function signed(value: number | null, digits = 0): string {
  if (value === null) return "–";
  return (value > 0 ? "+" : "") + figure(value, digits).replace("-", "−");
}
