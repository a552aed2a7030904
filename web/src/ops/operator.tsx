// The room behind #/operator; not furnished yet.

import { t } from "../i18n";

export default function Operator() {
  return (
    <main class="column">
      <h1>{t("operator")}</h1>
    </main>
  );
}
