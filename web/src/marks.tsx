// The furnace and the small signs on buttons, as inline SVG. They say nothing to a screen reader: labels do that.

import type { ComponentChildren } from "preact";

/** 丹炉: a tripod with a tiered lid and two ears, an ember in its belly and a breath of steam above. */
export function Furnace({ lit = false }: { lit?: boolean }) {
  return (
    <svg class={lit ? "furnace lit" : "furnace"} viewBox="0 0 64 64" aria-hidden="true">
      <g class="steam">
        <path d="M26.5 8c-2.2-2.3 2.2-3.7 0-6.4" />
        <path d="M32 7c-2.2-2.5 2.2-4.2 0-7.2" />
        <path d="M37.5 8c-2.2-2.3 2.2-3.7 0-6.4" />
      </g>
      <g class="body">
        <circle cx="32" cy="12" r="2" />
        <path d="M24.5 20.5c.6-3.6 3.4-6 7.5-6s6.9 2.4 7.5 6z" />
        <path d="M24 20.5c-1 3.7-4 6-8.5 6.5h33c-4.5-.5-7.5-2.8-8.5-6.5" />
        <path d="M15.5 27c-2.4 4.5-2.5 9.6.2 13.5 2.9 4.2 8.7 6.5 16.3 6.5s13.4-2.3 16.3-6.5c2.7-3.9 2.6-9 .2-13.5" />
        <path d="M14 38.5c-4.6.6-7.3-1.7-7.3-5.3s2.6-5.7 6.6-5.2M50 38.5c4.6.6 7.3-1.7 7.3-5.3s-2.6-5.7-6.6-5.2" />
        <path d="M20 44.5c.7 5.3-2.8 8-2.9 13h-3.4M44 44.5c-.7 5.3 2.8 8 2.9 13h3.4M32 47v7.5" />
      </g>
      <path class="ember" d="M32 29.5c5.3 4.9 5.7 10 0 12.1-5.7-2.1-5.3-7.2 0-12.1z" />
    </svg>
  );
}

function Sign({ children }: { children: ComponentChildren }) {
  return (
    <svg class="sign" viewBox="0 0 24 24" aria-hidden="true">
      {children}
    </svg>
  );
}

export const SendSign = () => <Sign><path d="M12 19V5.5M6 11l6-6 6 6" /></Sign>;
export const StopSign = () => <Sign><rect x="7" y="7" width="10" height="10" rx="1.8" class="filled" /></Sign>;
export const NewSign = () => <Sign><path d="M12 5v14M5 12h14" /></Sign>;
export const BinSign = () => <Sign><path d="M5 7h14M10 7V5h4v2M7 7l.8 12h8.4L17 7M10.5 10.5v5M13.5 10.5v5" /></Sign>;
export const TuneSign = () => (
  <Sign>
    <path d="M4 8h8M18 8h2M4 16h2M12 16h8" />
    <circle cx="15" cy="8" r="2.4" />
    <circle cx="9" cy="16" r="2.4" />
  </Sign>
);
export const ListSign = () => <Sign><rect x="3.5" y="5" width="17" height="14" rx="3" /><path d="M9.5 5v14" /></Sign>;
export const DotsSign = () => <Sign><path d="M6 12h.01M12 12h.01M18 12h.01" class="dots" /></Sign>;
export const CopySign = () => <Sign><rect x="9" y="9" width="10.5" height="10.5" rx="2.5" /><path d="M15 5.5A2.5 2.5 0 0 0 12.5 4H7a3 3 0 0 0-3 3v5.5A2.5 2.5 0 0 0 5.5 15" /></Sign>;
export const DoneSign = () => <Sign><path d="M5 12.5l4.5 4.5L19 7.5" /></Sign>;
export const EditSign = () => <Sign><path d="M4.5 19.5l1-4L16 5a2.1 2.1 0 0 1 3 3L8.5 18.5z" /></Sign>;
export const AgainSign = () => <Sign><path d="M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4" /></Sign>;
export const InfoSign = () => <Sign><circle cx="12" cy="12" r="8" /><path d="M12 11.3v4.5M12 8.2v.01" /></Sign>;
export const PreviousSign = () => <Sign><path d="M14 7l-5 5 5 5" /></Sign>;
export const NextSign = () => <Sign><path d="M10 7l5 5-5 5" /></Sign>;

const HAND = "M8 11l3.6-7.2c1.6 0 2.6 1.2 2.4 2.7L13.5 10h5a2 2 0 0 1 2 2.4l-1.2 5.8a2 2 0 0 1-2 1.6H8M8 11v8.8H4.5V11z";
export const UpSign = () => <Sign><path d={HAND} /></Sign>;
export const DownSign = () => <Sign><path d={HAND} transform="rotate(180 12 12)" /></Sign>;
