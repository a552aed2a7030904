// The room behind #/rank; not furnished yet.

import { t } from "../i18n";

export default function Rank() {
  return (
    <main class="column">
      <h1>{t("rank")}</h1>
    </main>
  );
}
