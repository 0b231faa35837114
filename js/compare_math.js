// What Compare Video computes: frames and times, drift, where pictures go, what a pointer hits. Pure; tests/test_compare_js.py
// runs it in node. Sizes are in the canvas's pixels, positions in a video are shares of its width and height.

/** @typedef {{x: number, y: number, width: number, height: number}} Box */
/** @typedef {{start: number, stop: number}} Range - frames, both shown */
/** @typedef {"wipe" | "side"} View */

export const REACH = 14; // px from the wipe's line at which it can be taken

/** @type {(value: number, low: number, high: number) => number} */
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** The frame shown at a time. @type {(seconds: number, fps: number, frames: number) => number} */
export function frameAt(seconds, fps, frames) {
    return clamp(Math.floor(seconds * fps + 1e-4), 0, Math.max(frames - 1, 0));
}

/** The middle of a frame, where no rounding shows its neighbour. @type {(frame: number, fps: number) => number} */
export const timeOf = (frame, fps) => (frame + 0.5) / fps;

/** Where playing goes on when it has left a range, else null. @type {(frame: number, range: Range) => number | null} */
export const looped = (frame, range) => (frame < range.start || frame > range.stop ? range.start : null);

/**
 * How a video catches up with the one that leads: jump where they are far apart, else play a little faster or slower.
 * @type {(leader: number, follower: number, fps: number) => {jump: boolean, rate: number}}
 */
export function correction(leader, follower, fps) {
    const late = (leader - follower) * fps; // frames
    if (Math.abs(late) > 4) return { jump: true, rate: 1 };
    return { jump: false, rate: Math.abs(late) < 0.25 ? 1 : clamp(1 + late * 0.05, 0.9, 1.1) };
}

/** The largest box of this aspect (width over height) inside another, in its middle. @type {(aspect: number, box: Box) => Box} */
export function fitted(aspect, box) {
    const width = Math.min(box.width, box.height * aspect);
    const height = width / aspect;
    return { x: box.x + (box.width - width) / 2, y: box.y + (box.height - height) / 2, width, height };
}

/**
 * Where the two videos are drawn: on each other, or side by side (below each other where that shows more).
 * @type {(view: View, aspect: number, width: number, height: number, gap?: number) => [Box, Box]}
 */
export function places(view, aspect, width, height, gap = 4) {
    const whole = fitted(aspect, { x: 0, y: 0, width, height });
    if (view !== "side") return [whole, whole];
    const half = (width - gap) / 2;
    const beside = fitted(aspect, { x: 0, y: 0, width: half, height });
    const low = (height - gap) / 2;
    const below = fitted(aspect, { x: 0, y: 0, width, height: low });
    if (beside.width >= below.width) return [beside, { ...beside, x: beside.x + half + gap }];
    return [below, { ...below, y: below.y + low + gap }];
}

/**
 * The part of a video that is shown: all of it, or a square around the mouth that stays inside.
 * @type {(mouth: {x: number, y: number, side: number} | null, aspect: number) => Box}
 */
export function shownPart(mouth, aspect) {
    if (!mouth) return { x: 0, y: 0, width: 1, height: 1 };
    const width = Math.min(mouth.side, 1, 1 / aspect);
    const height = width * aspect;
    return { x: clamp(mouth.x - width / 2, 0, 1 - width), y: clamp(mouth.y - height / 2, 0, 1 - height), width, height };
}

/** The mouth in a frame, null where none is known. @type {(mouths: number[][], every: number, frame: number) => any} */
export function mouthAt(mouths, every, frame) {
    const found = mouths[Math.min(Math.floor(frame / every), mouths.length - 1)];
    return found ? { x: found[0], y: found[1], side: found[2] } : null;
}

/** The share of a box's width at a place, 0 to 1. @type {(x: number, box: Box) => number} */
export const shareAt = (x, box) => clamp((x - box.x) / box.width, 0, 1);

/** Whether a pointer takes the wipe's line. @type {(x: number, y: number, share: number, box: Box) => boolean} */
export function isOnLine(x, y, share, box) {
    return Math.abs(x - (box.x + share * box.width)) <= REACH && y >= box.y && y <= box.y + box.height;
}

/** "12 / 103   0.48 s": this frame and the last, from 0. @type {(frame: number, frames: number, fps: number) => string} */
export function label(frame, frames, fps) {
    return `${frame} / ${Math.max(frames - 1, 0)}   ${(frame / fps).toFixed(2)} s`;
}

/** What a key does, null for those that are not ours. @type {(key: string) => string | null} */
export function actionOf(key) {
    const keys = {
        " ": "play", ArrowLeft: "back", ArrowRight: "on", Home: "first", End: "last", i: "in", o: "out", w: "wipe", s: "side",
        z: "zoom", m: "mute",
    };
    return keys[key.length === 1 ? key.toLowerCase() : key] ?? null;
}
