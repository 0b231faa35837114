/** The timeline's HTML: buttons above the curves, the mouth and the chosen edit beside them. */

import { fieldsOf, valueOf } from "./timeline_operations.js";

const STYLE = `
.flashlips-timeline { --fl-font: 12px; contain: layout size; container-type: inline-size; position: relative; display: flex; flex-direction: column;
    gap: 4px; width: 100%; height: 100%; min-height: var(--comfy-widget-min-height); box-sizing: border-box;
    color: var(--input-text); font: var(--fl-font)/1.3 system-ui, sans-serif; --comfy-widget-min-height: 360px; }
.flashlips-timeline:focus-within .fl-canvas { border-color: var(--p-primary-color, #60a5fa); }
.flashlips-timeline .fl-keys { position: absolute; width: 1px; height: 1px; opacity: 0; padding: 0; border: 0; pointer-events: none; }
.flashlips-timeline .fl-bar { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
.flashlips-timeline .fl-bar i.fl-gap { width: 8px; }
.flashlips-timeline button { font: inherit; color: var(--input-text); background: var(--comfy-input-bg); border: 1px solid var(--border-color);
    border-radius: 5px; padding: 3px 8px; min-height: calc(var(--fl-font) * 2); cursor: pointer; white-space: nowrap; }
.flashlips-timeline button:hover:not(:disabled) { border-color: var(--input-text); }
.flashlips-timeline button:disabled { opacity: 0.4; cursor: default; }
.flashlips-timeline button[aria-pressed="true"] { background: var(--p-primary-color, #2563eb); color: var(--p-primary-contrast-color, #fff); }
.flashlips-timeline button i { font-size: var(--fl-font); vertical-align: -1px; }
.flashlips-timeline .fl-main { flex: 1; display: flex; gap: 6px; min-height: 0; }
.flashlips-timeline .fl-stage { flex: 1; min-width: 0; position: relative; }
.flashlips-timeline .fl-canvas { position: absolute; inset: 0; width: 100%; height: 100%; box-sizing: border-box;
    border: 1px solid var(--border-color); border-radius: 5px; touch-action: none; display: block; }
.flashlips-timeline .fl-text { position: absolute; inset: 0; width: 100%; height: 100%; box-sizing: border-box; resize: none; padding: 6px;
    font: var(--fl-font)/1.4 ui-monospace, monospace; color: var(--input-text); background: var(--comfy-input-bg);
    border: 1px solid var(--border-color); border-radius: 5px; }
.flashlips-timeline [hidden] { display: none; }
.flashlips-timeline .fl-side { width: calc(var(--fl-font) * 13); display: flex; flex-direction: column; gap: 6px; min-height: 0; overflow: hidden auto; }
.flashlips-timeline .fl-mouth { width: 100%; aspect-ratio: 4 / 3; max-height: 45%; flex: none; box-sizing: border-box; border: 1px solid var(--border-color);
    border-radius: 5px; background: var(--comfy-input-bg); }
.flashlips-timeline .fl-fields { display: grid; grid-template-columns: 1fr calc(var(--fl-font) * 5); gap: 3px 6px; align-items: center; }
.flashlips-timeline .fl-fields b { grid-column: 1 / 3; }
.flashlips-timeline .fl-fields input { width: 100%; box-sizing: border-box; font: inherit; color: var(--input-text); background: var(--comfy-input-bg);
    border: 1px solid var(--border-color); border-radius: 4px; padding: 1px 4px; }
.flashlips-timeline .fl-fields button { grid-column: 1 / 3; }
.flashlips-timeline .fl-status { color: var(--descrip-text); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; min-height: 1.3em; flex: none; }
.flashlips-timeline .fl-status.fl-problem { color: var(--error-text, #f87171); white-space: normal; }
@container (max-width: 470px) { .flashlips-timeline .fl-side { display: none; } }
`;

/** Adds the style sheet once to the page. */
export function addStyle() {
    if (document.getElementById("flashlips-timeline-style")) return;
    const sheet = document.createElement("style");
    sheet.id = "flashlips-timeline-style";
    sheet.textContent = STYLE;
    document.head.append(sheet);
}

function element(tag, className, parent) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    parent?.append(made);
    return made;
}

/**
 * The elements of a timeline, and update(state), which brings them up to date.
 * @param {import("./timeline.js").Timeline} timeline
 * @param {(key: string, values?: object) => string} words
 */
export function build(timeline, words) {
    const root = element("div", "flashlips-timeline"), keys = element("textarea", "fl-keys", root);
    // What has the focus is a field, because ComfyUI hears every key first, undoes the graph at Ctrl+Z, and leaves only fields alone
    Object.assign(keys, { readOnly: true, tabIndex: 0 });
    keys.setAttribute("aria-label", words("title"));
    root.dataset.captureWheel = "true"; // for the newer renderer: the wheel is ours while we have the focus
    const bar = element("div", "fl-bar", root), buttons = {};
    const button = (key, icon, act) => {
        const made = element("button", "", bar);
        made.type = "button";
        made.title = words(`${key} tip`);
        if (icon) element("i", `pi pi-${icon}`, made);
        else made.textContent = words(key);
        made.setAttribute("aria-label", words(key));
        made.dataset.action = key;
        made.onclick = () => {
            act();
            keys.focus({ preventScroll: true }); // the keys stay the timeline's
        };
        return (buttons[key] = made);
    };
    const gap = () => element("i", "fl-gap", bar);
    button("play", "play", () => timeline.togglePlaying());
    button("undo", "undo", () => timeline.undo());
    button("redo", "refresh", () => timeline.redo());
    button("fit", "arrows-h", () => timeline.fit());
    gap();
    button("draw", "", () => timeline.setDrawing(!timeline.state.isDrawing));
    for (const key of ["scale", "smooth", "shift", "flatten", "close", "copy", "paste"]) button(key, "", () => timeline[key]());
    gap();
    button("json", "", () => timeline.showText(!timeline.state.isTextShown));
    const main = element("div", "fl-main", root), stage = element("div", "fl-stage", main);
    const canvas = element("canvas", "fl-canvas", stage), text = element("textarea", "fl-text", stage);
    Object.assign(text, { spellcheck: false, oninput: () => timeline.typed(text.value), onchange: () => timeline.settle() });
    text.setAttribute("aria-label", words("json"));
    const side = element("div", "fl-side", main);
    const mouth = element("canvas", "fl-mouth", side), fields = element("div", "fl-fields", side);
    const status = element("div", "fl-status", root);
    status.setAttribute("role", "status");
    let shownFor = null;

    function update(state) {
        const isFree = Boolean(state.track) && !state.problem, hasRange = isFree && Boolean(state.selection);
        for (const key of ["draw", "scale", "smooth", "shift"]) buttons[key].disabled = !isFree;
        for (const key of ["flatten", "close", "copy"]) buttons[key].disabled = !hasRange;
        buttons.paste.disabled = !isFree || !state.copied;
        buttons.play.disabled = buttons.fit.disabled = !state.track;
        buttons.undo.disabled = !timeline.history.past.length;
        buttons.redo.disabled = !timeline.history.future.length;
        buttons.draw.setAttribute("aria-pressed", String(state.isDrawing));
        buttons.json.setAttribute("aria-pressed", String(state.isTextShown));
        buttons.play.firstChild.className = `pi pi-${state.isPlaying ? "pause" : "play"}`;
        const line = statusText(state, words);
        if (status.textContent !== line) status.textContent = status.title = line;
        text.hidden = !state.isTextShown;
        if (state.isTextShown && text !== document.activeElement) text.value = timeline.text;
        mouth.hidden = !state.track;
        status.classList.toggle("fl-problem", Boolean(state.problem));
        const item = state.items?.[state.chosen], key = item ? `${state.chosen} ${item.op}` : "";
        if (key !== shownFor) fill(item, key);
        else if (item) for (const input of fields.querySelectorAll("input")) if (input !== document.activeElement) show(input, item);
    }

    function show(input, item) {
        input.value = valueOf(item, input.name) ?? "";
    }

    function fill(item, key) {
        shownFor = key;
        fields.replaceChildren();
        if (!item) return;
        element("b", "", fields).textContent = words(`op ${item.op}`);
        for (const [name, [kind, standard]] of Object.entries(fieldsOf(item.op))) {
            if (kind !== "number" && kind !== "frame") continue;
            const label = element("label", "", fields), input = element("input", "", fields);
            label.textContent = words(`field ${name}`);
            Object.assign(input, { type: "number", name, step: kind === "frame" ? 1 : 0.1, placeholder: standard ?? words("standard") });
            input.setAttribute("aria-label", label.textContent);
            show(input, item);
            input.oninput = () => timeline.setField(name, input.value === "" ? null : Number(input.value));
            input.onchange = () => {
                timeline.settle();
                const now = timeline.state.items?.[timeline.state.chosen];
                if (now) show(input, now); // what was not taken is not left standing there
            };
        }
        const remove = element("button", "", fields);
        remove.type = "button";
        remove.textContent = words("remove");
        remove.onclick = () => (timeline.remove(), keys.focus({ preventScroll: true }));
    }

    return { root, keys, canvas, mouth, update };
}

/** What is under the curves: what is wrong, or where one is. */
export function statusText(state, words) {
    if (state.problem) return words(`problem ${state.problem.key}`, { number: state.problem.number, what: state.problem.what });
    if (!state.track) return "";
    const parts = [words("at", { frame: state.playhead, time: ((state.playhead + 0.5) / state.track.fps).toFixed(2) })];
    if (state.selection) {
        const { start, stop } = state.selection;
        parts.push(words("selected", { start, stop: stop - 1, frames: stop - start }));
    }
    if (state.unseen.length) parts.push(words("unseen"));
    if (state.note) parts.push(words(state.note));
    return parts.join("  ·  ");
}
