// How Compare Video looks, and what it says in English and Chinese.

const ENGLISH = {
    before: "before", after: "after", empty: "Run to compare the two videos.",
    broken: "The browser cannot play one of the videos.",
    play: "Play or stop (space, or click the picture)", back: "One frame back (left arrow)", on: "One frame on (right arrow)",
    time: "Time; the blue part is looped", wipe: "A line between the two; drag it (W)", side: "Side by side (S)",
    zoom: "The mouth, large; drag the picture to look elsewhere (Z)", in: "The loop begins here; again: at the start (I)",
    out: "The loop ends here; again: at the end (O)", mute: "Whose sound is heard (M)",
    wipeShort: "Wipe", sideShort: "Side by side", zoomShort: "Mouth", soundAfter: "Sound: after", soundBefore: "Sound: before",
    soundOff: "Sound: off",
};
const CHINESE = {
    before: "之前", after: "之后", empty: "运行后即可比较两个视频。", broken: "浏览器无法播放其中一个视频。",
    play: "播放或停止（空格，或点击画面）", back: "后退一帧（左箭头）", on: "前进一帧（右箭头）", time: "时间；蓝色部分循环播放",
    wipe: "两者之间的分割线，可拖动（W）", side: "并排（S）", zoom: "放大嘴部；拖动画面可看别处（Z）",
    in: "循环从此处开始；再按：从头开始（I）", out: "循环到此处结束；再按：到结尾（O）", mute: "播放哪一个的声音（M）",
    wipeShort: "分割", sideShort: "并排", zoomShort: "嘴部", soundAfter: "声音：之后", soundBefore: "声音：之前", soundOff: "静音",
};

/** The words for ComfyUI's language. @type {(locale: string | undefined) => typeof ENGLISH} */
export const words = (locale) => (locale?.startsWith("zh") ? CHINESE : ENGLISH);

export const CSS = `
.flashlips-compare { display: flex; flex-direction: column; width: 100%; height: 100%; contain: layout size;
    min-height: var(--comfy-widget-min-height, 340px); gap: 6px; outline: none; box-sizing: border-box; font: 12px sans-serif;
    color: var(--input-text, #ddd); }
.flashlips-compare:focus-visible .stage { box-shadow: 0 0 0 2px var(--p-primary-color, #6aa5ff); }
.flashlips-compare .stage { position: relative; flex: 1 1 0; min-height: 0; background: #101010; border-radius: 6px;
    overflow: hidden; }
.flashlips-compare canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; }
.flashlips-compare .note { position: absolute; inset: 0; display: grid; place-items: center; padding: 12px; text-align: center;
    color: #bbb; pointer-events: none; }
.flashlips-compare .note[hidden] { display: none; }
.flashlips-compare .bar { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; }
.flashlips-compare .break { flex-basis: 100%; height: 0; }
.flashlips-compare button { min-width: 28px; height: 24px; padding: 0 7px; font: inherit; cursor: pointer; border-radius: 4px;
    color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); }
.flashlips-compare button:hover { border-color: var(--input-text, #ddd); }
.flashlips-compare button:focus-visible { outline: 2px solid var(--p-primary-color, #6aa5ff); outline-offset: 1px; }
.flashlips-compare button[aria-pressed="true"] { background: #2f6fb3; border-color: #2f6fb3; color: white; }
.flashlips-compare .time { flex: 1 1 80px; min-width: 60px; height: 16px; margin: 0 4px; appearance: none;
    background: transparent; --from: 0%; --to: 100%; }
.flashlips-compare .time::-webkit-slider-runnable-track { height: 4px; border-radius: 2px; background: linear-gradient(to right,
    #777 var(--from), #6aa5ff var(--from), #6aa5ff var(--to), #777 var(--to)); }
.flashlips-compare .time::-moz-range-track { height: 4px; border-radius: 2px; background: linear-gradient(to right,
    #777 var(--from), #6aa5ff var(--from), #6aa5ff var(--to), #777 var(--to)); }
.flashlips-compare .time::-webkit-slider-thumb { appearance: none; width: 12px; height: 12px; margin-top: -4px;
    border-radius: 50%; background: var(--input-text, #ddd); }
.flashlips-compare .label { font-variant-numeric: tabular-nums; white-space: pre; min-width: 116px; text-align: right; }
`;
