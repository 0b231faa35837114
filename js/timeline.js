/**
 * The lip-pose timeline on Edit Lip Poses. What it edits is the text of the node's own "operations" widget, which Python applies;
 * without a browser the same text gives the same poses.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Columns } from "./timeline_columns.js";
import { traced, unpacked } from "./timeline_data.js";
import { draw, drawMouth, fitted, gutterOf, themeOf } from "./timeline_draw.js";
import { History } from "./timeline_history.js";
import { listen } from "./timeline_input.js";
import { applied, format, parse, readAt } from "./timeline_operations.js";
import { addStyle, build } from "./timeline_panel.js";
import { Player } from "./timeline_player.js";
import { following, inside, simplified, whole } from "./timeline_view.js";
import { load, words } from "./timeline_words.js";

const NODE = "FlashLipsEditPoses", RESULT = "flashlips_timeline";
const FADE = 2; // frames over which an edit of a range ramps
const SIZE = [760, 640]; // of a fresh node
const LOOK_MS = 400; // how often the theme, the zoom and the text are looked at
const STROKE_TOLERANCE = 0.012; // of what a lane shows
const READABLE_PX = 9, LARGEST_FONT = 1.5; // on screen, whatever the graph's zoom; times the usual size at most

export class Timeline {
    constructor(node, widget) {
        this.node = node;
        this.widget = widget; // the operations' text
        this.history = new History(widget.value);
        this.ended = new AbortController();
        this.state = {
            track: null, view: whole(1, 1), playhead: 0, selection: null, items: [], problem: null, chosen: null, copied: null,
            stroke: null, isDrawing: false, isOpen: false, isPlaying: false, isTextShown: false, isEdited: false, unseen: [],
            before: [], after: [], note: null, messageKey: "empty", fontScale: 1,
        };
        const parts = build(this, words);
        Object.assign(this, parts);
        this.columns = new Columns();
        this.player = new Player(this);
        listen(this, this.ended.signal);
        this.observer = new ResizeObserver(() => this.resized());
        this.observer.observe(this.canvas);
        this.watch = setInterval(() => this.lookAround(), LOOK_MS);
        widget.hidden = true; // the timeline shows it; it stays what is saved and sent
        if (widget.options) widget.options.hidden = true;
        this.readText();
    }

    /** The node is gone: nothing of ours may stay. */
    dispose() {
        this.ended.abort();
        this.observer.disconnect();
        clearInterval(this.watch);
        cancelAnimationFrame(this.asked);
        this.player.dispose();
        this.root.remove();
    }

    // ---- data ------------------------------------------------------------------------------------------------------------

    /** Reads what a run has sent; of two at once the newer one wins. */
    async receive(file) {
        const turn = (this.turn = (this.turn ?? 0) + 1);
        try {
            const answer = await api.fetchApi(`/view?${new URLSearchParams(file)}`, { signal: this.ended.signal });
            const content = answer.ok ? await answer.json() : null;
            if (turn !== this.turn) return;
            this.setTrack(content && unpacked(content), content ? "otherVersion" : "lost");
        } catch (error) {
            if (error.name !== "AbortError" && turn === this.turn) this.setTrack(null, "lost");
        }
    }

    setTrack(track, messageKey) {
        const { state } = this, isSame = track && state.track?.frames === track.frames;
        Object.assign(state, { track, messageKey });
        if (track && !isSame) {
            state.playhead = Math.min(state.playhead, Math.max(track.frames - 1, 0));
            state.selection = null;
            state.view = whole(track.frames, this.viewWidth());
        }
        this.player.load(track?.sound ?? null);
        if (track) this.before = traced(track, track.values);
        this.apply();
    }

    /** The operations as they stand in the widget; what cannot be read is left alone and said. */
    readText() {
        this.text = this.widget.value;
        const { items, problem } = parse(this.text);
        Object.assign(this.state, { items, problem });
        if (!items || this.state.chosen >= items.length) this.state.chosen = null;
        if (problem) this.state.isDrawing = false;
        this.apply();
    }

    /** The curves after the operations. */
    apply() {
        const { state } = this, { track } = state;
        if (track) {
            const { values, unseen } = applied(track, state.items ?? []);
            Object.assign(state, { before: this.before, after: traced(track, values), unseen, isEdited: values !== track.values });
            this.values = values;
        }
        this.refresh();
    }

    // ---- edits -----------------------------------------------------------------------------------------------------------

    /** Puts a list into the widget, as one step of undo unless it belongs to the step before. */
    write(items, mark = null) {
        const text = format(items);
        this.history.push(text, mark);
        this.put(text);
    }

    put(text) {
        this.widget.value = text;
        this.widget.callback?.(text);
        this.readText();
        app.graph?.setDirtyCanvas?.(true, true);
        if (!this.history.mark) this.remember();
    }

    /** Tells ComfyUI that the workflow has changed, so that a reload keeps it. */
    remember() {
        const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
        if (tracker?.captureCanvasState) tracker.captureCanvasState();
        else tracker?.checkState?.(); // before 0.30
    }

    settle() {
        this.history.settle();
        this.remember();
    }

    add(item) {
        const { state } = this;
        if (!state.items || !state.track) return;
        const items = [...state.items, item];
        state.chosen = items.length - 1;
        this.write(items);
    }

    /** The selected range as fields of an operation; without one, all of the track. */
    range() {
        const { selection } = this.state;
        return selection ? { ...selection, fade: FADE } : {};
    }

    scale() { this.add({ op: "gain", expression: 1.2, mouth: 1.2, ...this.range() }); }
    smooth() { this.add({ op: "smooth", deviation: 1.5, ...this.range() }); }
    shift() { this.add({ op: "shift", frames: 1, ...this.range() }); }

    flatten() {
        const { selection } = this.state;
        if (selection) this.add({ op: "hold", frame: Math.floor((selection.start + selection.stop - 1) / 2), ...this.range() });
    }

    close() {
        if (this.state.selection) this.add({ op: "rest", ...this.range() });
    }

    copy() {
        const { state } = this;
        if (!state.selection) return;
        state.copied = { ...state.selection };
        state.note = "copied";
        this.refresh();
    }

    /** The copied range again, from the playhead on. */
    paste() {
        const { copied, playhead, track } = this.state;
        if (!copied || !track) return;
        const stop = Math.min(playhead + copied.stop - copied.start, track.frames);
        this.state.selection = { start: playhead, stop };
        this.add({ op: "copy", source: copied.start, start: playhead, stop, fade: FADE });
    }

    /** A stroke becomes an operation: the curve is to be what was drawn. */
    drawn(index, points) {
        const curve = this.state.track.curves[index], found = [...points].sort(([a], [b]) => a - b);
        if (!found.length) return;
        const kept = simplified(found, STROKE_TOLERANCE * (curve.high - curve.low)).map(([frame, value]) => [frame, rounded(value)]);
        this.add({ op: "draw", curve: curve.name, points: kept, start: kept[0][0], stop: kept.at(-1)[0] + 1, fade: FADE });
    }

    setField(name, value) {
        const { items, chosen } = this.state;
        if (!items?.[chosen]) return;
        const next = { ...items[chosen], [name]: value };
        if (value === null) delete next[name];
        const changed = items.with(chosen, next);
        if (parse(format(changed)).problem) return; // half-typed, or not allowed: what stands stays
        this.write(changed, `field ${chosen} ${name}`);
    }

    /** A dragged bar: moved as a whole with its curve, or by one end. */
    moveEdit({ index, part }, item, by) {
        const { frames } = this.state.track, start = item.start ?? 0, stop = Math.min(item.stop ?? frames, frames);
        const next = structuredClone(item);
        if (part === "start") next.start = Math.min(Math.max(start + by, 0), stop - 1);
        else if (part === "stop") next.stop = Math.max(Math.min(stop + by, frames), start + 1);
        else {
            const shift = Math.min(Math.max(by, -start), frames - stop);
            Object.assign(next, { start: start + shift, stop: stop + shift });
            if (next.points?.[0]?.[0] + shift < 0) return;
            if (next.points) next.points = next.points.map(([frame, value]) => [frame + shift, value]);
        }
        this.write(this.state.items.with(index, next), `bar ${index}`);
    }

    /** Delete: the chosen edit, else the motion of the selected range. */
    remove() {
        const { items, chosen, problem } = this.state;
        if (problem) return;
        if (chosen === null) return this.close();
        this.state.chosen = null;
        this.write(items.toSpliced(chosen, 1));
    }

    undo() { this.back(this.history.undo()); }
    redo() { this.back(this.history.redo()); }

    back(text) {
        if (text === null) return;
        this.state.chosen = null;
        this.put(text);
    }

    // ---- looking -----------------------------------------------------------------------------------------------------------

    choose(index) {
        this.state.chosen = index;
        this.refresh();
    }

    select(range) {
        Object.assign(this.state, { selection: range, note: null });
        if (range) this.state.chosen = null;
        this.refresh();
    }

    selectAll() {
        if (this.state.track) this.select({ start: 0, stop: this.state.track.frames });
    }

    seek(frame, isPlaying = false) {
        this.state.playhead = frame;
        if (!isPlaying) this.player.seek(frame);
        this.refresh();
    }

    /** The playhead by frames; extending the selection where asked. */
    step(by, isExtending) {
        const { state } = this, { track } = state;
        if (!track) return;
        const from = state.playhead, to = Math.min(Math.max(from + by, 0), track.frames - 1);
        if (isExtending) {
            const { start, stop } = state.selection ?? { start: from, stop: from + 1 };
            const isAtStart = state.selection && from === start && stop - start > 1;
            const other = isAtStart ? stop - 1 : start;
            this.select({ start: Math.min(other, to), stop: Math.max(other, to) + 1 });
        }
        state.view = following(state.view, to, track.frames);
        this.seek(to);
    }

    look(view) {
        this.state.view = inside(view, this.state.track.frames);
        this.refresh();
    }

    fit() {
        if (this.state.track) this.look(whole(this.state.track.frames, this.viewWidth()));
    }

    togglePlaying() { this.player.toggle(); }

    setDrawing(isDrawing) {
        this.state.isDrawing = isDrawing && Boolean(this.state.track) && !this.state.problem;
        this.refresh();
    }

    toggleNumbers() {
        this.state.isOpen = !this.state.isOpen;
        this.refresh();
    }

    /** The operations' text over the curves, for those who want it, and where it must be mended. */
    showText(isShown) {
        this.state.isTextShown = isShown;
        this.refresh();
    }

    /** What is typed there, right or not: the run refuses what is wrong. */
    typed(text) {
        this.history.push(text, "typed");
        this.put(text);
    }

    /** What nobody tells us of: another theme, another zoom, a text that was typed or loaded. */
    lookAround() {
        if (!this.root.isConnected) return;
        const isOther = this.widget.value !== this.text;
        if (isOther) {
            this.history.push(this.widget.value);
            this.readText();
        }
        const rect = this.root.getBoundingClientRect(), zoom = this.root.offsetWidth ? rect.width / this.root.offsetWidth : 1;
        const theme = themeOf(this.root);
        if (zoom === this.zoom && theme.text + theme.ground === this.theme?.text + this.theme?.ground) return;
        Object.assign(this, { zoom, theme });
        this.state.fontScale = Math.min(Math.max(READABLE_PX / (12 * Math.max(zoom, 0.1)), 1), LARGEST_FONT);
        this.root.style.setProperty("--fl-font", `${Math.round(12 * this.state.fontScale)}px`);
        this.resized();
    }

    viewWidth() { return Math.max(this.canvas.clientWidth - gutterOf(this.state), 1); }

    resized() {
        this.state.view = { ...this.state.view, width: this.viewWidth() };
        this.refresh();
    }

    /** Draws at the screen's next frame, however often it is asked for. */
    refresh() {
        this.asked ??= requestAnimationFrame(() => {
            this.asked = undefined;
            this.paint();
        });
    }

    paint() {
        this.theme ??= themeOf(this.root);
        this.update(this.state);
        const sharp = (window.devicePixelRatio || 1) * Math.min(Math.max(this.zoom ?? 1, 1), 2);
        const context = fitted(this.canvas, sharp), { clientWidth, clientHeight } = this.canvas;
        if (clientWidth && clientHeight) draw(context, this.state, clientWidth, clientHeight, this.theme, words, this.columns);
        const { track, playhead } = this.state, { clientWidth: width, clientHeight: height } = this.mouth;
        if (!track?.frames || !width) return;
        const [opening, wide] = ["opening", "width"].map((name) => readAt(this.values, playhead, track.curves.find((curve) => curve.name === name)));
        drawMouth(fitted(this.mouth, sharp), opening, wide, [width, height], this.theme);
    }

    /** What is the graph's; the newer renderer looks after that itself. */
    forward(event) {
        if (app.extensionManager?.setting?.get("Comfy.VueNodes.Enabled")) return;
        event.preventDefault();
        event.stopPropagation();
        if (event.type === "wheel") app.canvas.processMouseWheel(event);
        else app.canvas.processMouseDown(event);
    }
}

function rounded(value) {
    return Math.round(value * 1000) / 1000;
}

function attach(node) {
    const widget = node.widgets?.find((candidate) => candidate.name === "operations");
    if (!widget) return;
    addStyle();
    const timeline = new Timeline(node, widget);
    const shown = node.addDOMWidget("timeline", "flashlips-timeline", timeline.root, { serialize: false, hideOnZoom: false });
    shown.serialize = false; // neither in the workflow nor in the prompt: the operations are all there is to keep
    node.flashlipsTimeline = timeline;
    const chain = (name, ours) => {
        const theirs = node[name];
        node[name] = function (...given) {
            const result = theirs?.apply(this, given);
            ours(...given);
            return result;
        };
    };
    chain("onExecuted", (output) => output?.[RESULT]?.[0] && timeline.receive(output[RESULT][0]));
    chain("onConfigure", () => {
        timeline.readText();
        timeline.history.reset(timeline.text);
        timeline.showText(Boolean(timeline.state.problem));
    });
    chain("onRemoved", () => timeline.dispose());
    if (node.size[0] < SIZE[0] || node.size[1] < SIZE[1]) node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
}

app.registerExtension({
    name: "FlashLips.Timeline",
    setup: load,
    nodeCreated(node) {
        if (node.comfyClass === NODE) attach(node);
    },
});
