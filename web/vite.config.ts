import { type Plugin, defineConfig } from "vite";

/** KaTeX offers each font in three formats; every browser that runs this page reads the first. */
const onlyWoff2: Plugin = {
  name: "only-woff2",
  enforce: "pre",
  transform: (source, id) =>
    id.includes("katex") && id.endsWith(".css")
      ? source.replace(/,\s*url\([^)]*\.(?:woff|ttf)\)\s*format\([^)]*\)/g, "")
      : undefined,
};

export default defineConfig({
  plugins: [onlyWoff2],
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
