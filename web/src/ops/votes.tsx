// The votes, newest first, a page at a time.

import { useSignal } from "@preact/signals";
import { figure } from "../i18n";
import { SHEET, type Vote, type Votes, votes } from "./api";
import { Show, sentence, useLoaded } from "./load";
import { moment, w } from "./words";

export function VotesView() {
  return <Show of={useLoaded(() => votes(""))}>{(first) => <List first={first} />}</Show>;
}

function List({ first }: { first: Votes }) {
  const pages = useSignal([first]);
  const problem = useSignal("");
  const next = pages.value.at(-1)!.next;
  const more = async () => {
    try {
      pages.value = [...pages.value, await votes(next!)];
      problem.value = "";
    } catch (error) {
      problem.value = sentence(error);
    }
  };
  return (
    <>
      <p class="bar-of-acts">
        <span class="note">{w("votesTotal", { n: figure(first.total) })}</span>
        {first.total > 0 && <a class="quiet firm" href={SHEET} download="votes.csv">{w("sheet")}</a>}
      </p>
      <ul class="votes">
        {pages.value.flatMap((page) => page.votes).map((vote) => <One key={vote.id} vote={vote} />)}
      </ul>
      {problem.value && <p class="problem" role="alert">{problem.value}</p>}
      {next && <button type="button" class="quiet firm" onClick={() => void more()}>{w("more")}</button>}
    </>
  );
}

function One({ vote }: { vote: Vote }) {
  return (
    <li>
      <p class="line prompted">{vote.prompt.at(-1)?.content}</p>
      <p class="line note">
        <strong>{verdict(vote)}</strong>
        <time dateTime={vote.time}>{moment(vote.time)}</time>
        {vote.rater && <span title={vote.rater}>{w("rater")} {vote.rater.slice(0, 12)}</span>}
      </p>
      {vote.reason && <p class="line">{vote.reason}</p>}
      <details>
        <summary>{w("details")}</summary>
        <div class="shown">
          {vote.answers.map((answer, place) => (
            <figure key={place}>
              <figcaption class="note">
                {answer.rank === null ? "" : `${answer.rank + 1}. `}{answer.model || "?"}
              </figcaption>
              <blockquote>{answer.text}</blockquote>
            </figure>
          ))}
        </div>
      </details>
    </li>
  );
}

/** Models from the best to the worst, "=" between those that tie. */
function verdict({ kind, thumb, answers }: Vote): string {
  if (kind === "thumb") return `${answers[0]!.model}: ${w(thumb === "up" ? "good" : "bad")}`;
  if (answers.every(({ rank }) => rank === null)) return w("allBadVote");
  const order = answers.toSorted((a, b) => a.rank! - b.rank!);
  return order
    .map(({ model, rank }, index) => (index === 0 ? "" : rank === order[index - 1]!.rank ? " = " : " > ") + (model || "?"))
    .join("");
}
