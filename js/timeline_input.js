/** Pointer, wheel and keys of the timeline: they act while the pointer is on it or it has the focus, and never otherwise. */

import { barAt, gutterOf, placed, scaleOf } from "./timeline_draw.js";
import { edgeAt, frameAt, laneAt, panned, rangeBetween, strokeTo, zoomed } from "./timeline_view.js";

const CLICK_PX = 3; // a shorter drag is a click
const WHEEL_ZOOM = 0.0016; // per unit of the wheel

/**
 * Listens until the signal is aborted.
 * @param {import("./timeline.js").Timeline} timeline
 * @param {AbortSignal} signal
 */
export function listen(timeline, signal) {
    const { canvas, root } = timeline;
    let drag = null;

    const position = (event) => { // CSS pixels of the canvas, whatever the graph's zoom
        const rect = canvas.getBoundingClientRect();
        return [((event.clientX - rect.left) / rect.width) * canvas.clientWidth, ((event.clientY - rect.top) / rect.height) * canvas.clientHeight];
    };
    const on = (target, name, handle, options = {}) => target.addEventListener(name, handle, { signal, ...options });

    on(root, "pointerdown", (event) => {
        if (event.button === 1) return timeline.forward(event);
        event.stopPropagation(); // else the node is dragged
        if (event.target === canvas && event.button === 0 && timeline.state.track) {
            timeline.keys.focus({ preventScroll: true });
            canvas.setPointerCapture(event.pointerId);
            const [x, y] = position(event);
            drag = beginning(timeline, x, y, event);
            event.preventDefault();
        }
    });
    on(root, "pointermove", (event) => {
        if (event.buttons & 4) return;
        event.stopPropagation();
        const [x, y] = position(event);
        if (drag) continued(timeline, drag, x, y);
        else if (event.target === canvas) canvas.style.cursor = cursorAt(timeline, x, y);
    });
    const end = (event) => {
        event.stopPropagation();
        if (drag) ended(timeline, drag, event.type === "pointercancel");
        drag = null;
    };
    on(root, "pointerup", end);
    on(root, "pointercancel", end);
    for (const name of ["mousedown", "mouseup", "click", "dblclick"]) on(root, name, (event) => event.button !== 1 && event.stopPropagation());
    on(canvas, "contextmenu", (event) => (event.preventDefault(), event.stopPropagation()));
    on(root, "wheel", (event) => {
        const { state } = timeline;
        if (!root.contains(document.activeElement) || !state.track) return timeline.forward(event);
        event.preventDefault();
        event.stopPropagation();
        const [x] = position(event), frames = state.track.frames;
        const isSideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
        if (isSideways) timeline.look(panned(state.view, event.deltaX || event.deltaY, frames));
        else timeline.look(zoomed(state.view, Math.exp(-event.deltaY * WHEEL_ZOOM), x - gutterOf(state), frames));
    }, { passive: false });
    on(root, "keydown", (event) => {
        event.stopPropagation(); // Delete would delete the node, Ctrl-Z undo the graph
        if (event.target.matches("input, textarea:not(.fl-keys)") || !keyed(timeline, event)) return;
        event.preventDefault();
    });
    on(root, "keyup", (event) => event.stopPropagation());
    for (const name of ["copy", "paste", "cut"]) on(root, name, (event) => event.stopPropagation());
}

function keyed(timeline, event) {
    const command = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
    const onButton = event.target.matches("button");
    if (command && key === "z") return event.shiftKey ? timeline.redo() : timeline.undo(), true;
    if (command && key === "y") return timeline.redo(), true;
    if (command && key === "c") return timeline.copy(), true;
    if (command && key === "v") return timeline.paste(), true;
    if (command && key === "a") return timeline.selectAll(), true;
    if (command || event.altKey) return false;
    switch (event.key) {
        case " ": return onButton ? false : (timeline.togglePlaying(), true);
        case "ArrowLeft": return timeline.step(-1, event.shiftKey), true;
        case "ArrowRight": return timeline.step(1, event.shiftKey), true;
        case "Home": return timeline.step(-Infinity, event.shiftKey), true;
        case "End": return timeline.step(Infinity, event.shiftKey), true;
        case "Delete": case "Backspace": return timeline.remove(), true;
        case "Escape": return timeline.select(null), true;
        case "d": return timeline.setDrawing(!timeline.state.isDrawing), true;
        default: return false;
    }
}

/** What a press at a place begins. */
function beginning(timeline, x, y, event) {
    const { state, canvas } = timeline;
    const lane = laneAt(placed(state, canvas.clientHeight), y), inner = x - gutterOf(state);
    const drag = { kind: "select", x0: inner, isClick: true, lane };
    if (!lane) return drag;
    if (lane.key === "group") return timeline.toggleNumbers(), { kind: "none" };
    if (lane.key === "ruler") drag.kind = "scrub";
    if (lane.key === "scroll") drag.kind = "scroll";
    if (lane.key.startsWith("curve") && state.isDrawing && !state.problem) {
        Object.assign(drag, { kind: "draw", index: Number(lane.key.slice(6)), last: null });
        drag.scale = scaleOf(state.track.curves[drag.index], lane);
        state.stroke = { index: drag.index, points: new Map() };
    }
    if (lane.key === "edits") {
        const bar = barAt(state, lane, inner, y);
        timeline.choose(bar ? bar.index : null);
        if (bar && !state.problem) Object.assign(drag, { kind: "bar", bar, item: structuredClone(state.items[bar.index]) });
    }
    if (event.shiftKey && drag.kind === "select" && state.selection) { // extend what is selected
        const { start, stop } = state.selection, frame = frameAt(state.view, inner, state.track.frames);
        timeline.select({ start: Math.min(start, frame), stop: Math.max(stop, frame + 1) });
        return { kind: "none" };
    }
    if (drag.kind === "scrub" || drag.kind === "draw") continued(timeline, drag, x, y);
    return drag;
}

function continued(timeline, drag, x, y) {
    const { state } = timeline, { view, track } = state, inner = x - gutterOf(state);
    if (Math.abs(inner - drag.x0) > CLICK_PX) drag.isClick = false;
    const frame = frameAt(view, inner, track.frames);
    if (drag.kind === "scrub") timeline.seek(frame);
    if (drag.kind === "select" && !drag.isClick) timeline.select(rangeBetween(view, drag.x0, inner, track.frames));
    if (drag.kind === "scroll") {
        const first = (inner / view.width) * Math.max(track.frames, view.span) - view.span / 2;
        timeline.look({ ...view, first });
    }
    if (drag.kind === "draw") {
        const point = { frame, value: drag.scale.value(y) };
        strokeTo(state.stroke.points, drag.last ?? point, point);
        drag.last = point;
        timeline.refresh();
    }
    if (drag.kind === "bar" && !drag.isClick) {
        const by = edgeAt(view, inner, track.frames) - edgeAt(view, drag.x0, track.frames);
        timeline.moveEdit(drag.bar, drag.item, by);
    }
}

function ended(timeline, drag, isCancelled) {
    const { state } = timeline;
    if (drag.kind === "draw") {
        const { index, points } = state.stroke;
        state.stroke = null;
        if (isCancelled) timeline.refresh();
        else timeline.drawn(index, points);
    }
    if (drag.kind === "select" && drag.isClick && !isCancelled) {
        timeline.select(null);
        timeline.seek(frameAt(state.view, drag.x0, state.track.frames));
    }
    if (drag.kind === "bar") timeline.settle();
}

function cursorAt({ state, canvas }, x, y) {
    const lane = state.track && laneAt(placed(state, canvas.clientHeight), y);
    if (!lane) return "default";
    if (lane.key === "group") return "pointer";
    if (lane.key === "ruler") return "col-resize";
    if (lane.key === "scroll") return "grab";
    if (lane.key === "edits") {
        const bar = barAt(state, lane, x - gutterOf(state), y);
        return bar ? (bar.part === "body" ? "move" : "ew-resize") : "default";
    }
    return state.isDrawing && lane.key.startsWith("curve") ? "crosshair" : "text";
}
