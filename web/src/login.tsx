// Who are you? Shown instead of everything else while the server knows nobody behind this browser.

import { useSignal } from "@preact/signals";
import { ApiError, logIn, logOut } from "./api";
import { csrf } from "./account";
import { t } from "./i18n";
import "./login.css";

export function Login() {
  const wrong = useSignal("");
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    const said = new FormData(event.currentTarget as HTMLFormElement);
    const user = String(said.get("user")).trim();
    const secret = String(said.get("secret")).trim();
    try {
      await logIn(user ? { user, password: secret } : { key: secret });
      location.reload();
    } catch (error) {
      wrong.value = error instanceof ApiError ? error.message : t("unreachable");
    }
  };
  return (
    <main class="login">
      <h1>{t("brand")}</h1>
      <form onSubmit={(event) => void submit(event)}>
        <label>
          <span>{t("user")}</span>
          <input name="user" autocomplete="username" autofocus />
        </label>
        <label>
          <span>{t("secret")}</span>
          <input name="secret" type="password" autocomplete="current-password" required />
        </label>
        {wrong.value && <p role="alert">{wrong.value}</p>}
        <button type="submit">{t("logIn")}</button>
      </form>
    </main>
  );
}

/** Nothing where nobody has to log in. */
export function LogOut() {
  if (!csrf.value) return null;
  return (
    <button type="button" class="quiet" onClick={() => void logOut().finally(() => location.reload())}>
      {t("logOut")}
    </button>
  );
}
