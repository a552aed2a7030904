// The room behind #/runs; not furnished yet.

import { t } from "../i18n";

export default function Runs() {
  return (
    <main class="column">
      <h1>{t("runs")}</h1>
    </main>
  );
}
