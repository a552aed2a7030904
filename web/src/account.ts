// In:  nothing. Out: whether this browser has to log in, and the token that proves a request is this page's own.
// Left out: logging in (login.tsx), requests (api.ts).

import { signal } from "@preact/signals";

/** The server knows nobody behind this browser: it answers 401. */
export const locked = signal(false);

/** Empty while the server is open to whoever sits at its machine: nobody has to log in, or out, there. */
export const csrf = signal("");
