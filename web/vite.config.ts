import { defineConfig } from "vite";

export default defineConfig({
  build: {
    outDir: "../src/danlu/serve/static",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the content policy allows no data: URLs
    modulePreload: { polyfill: false },
  },
  server: {
    // `npm run dev` beside `danlu serve` on its usual port
    proxy: { "/api": "http://127.0.0.1:8000", "/v1": "http://127.0.0.1:8000" },
  },
});
