// The room of whoever runs the place: what votes say of the models, the votes themselves, what waits to be looked at,
// keys. A part that this server does not have says so.

import { t } from "../i18n";
import { ChampionView } from "./champion";
import { Keys } from "./keys";
import { Queue } from "./queue";
import { RatingsView } from "./ratings";
import { VotesView } from "./votes";
import { w } from "./words";
import "./ops.css";

export default function Operator() {
  return (
    <main class="ops" tabIndex={-1}>
      <h1>{t("operator")}</h1>
      <section aria-labelledby="champion">
        <h2 id="champion">{w("whoServes")}</h2>
        <ChampionView />
      </section>
      <section aria-labelledby="ratings">
        <h2 id="ratings">{w("ratings")}</h2>
        <RatingsView />
      </section>
      <section aria-labelledby="votes">
        <h2 id="votes">{w("votes")}</h2>
        <VotesView />
      </section>
      <section aria-labelledby="queue">
        <h2 id="queue">{w("queue")}</h2>
        <Queue />
      </section>
      <section aria-labelledby="keys">
        <h2 id="keys">{w("keys")}</h2>
        <Keys />
      </section>
    </main>
  );
}
