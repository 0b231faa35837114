/** What a run sends for the timeline, as flashlips_core/poses/timeline.py writes it, unpacked. Pure, tested by node. */

import { DIM, readAt } from "./timeline_operations.js";
import { pyramid } from "./timeline_view.js";

export const VERSION = 1;
const SPEECH = 0.5; // of the gate from which a frame is drawn as speech

/** @returns A track, or null where the file is of another version. */
export function unpacked(file) {
    if (file?.version !== VERSION) return null;
    const packed = new Int16Array(bytes(file.poses).buffer);
    const values = Float32Array.from(packed, (value) => (value / 32767) * file.scale);
    const gate = file.gate && Float32Array.from(bytes(file.gate), (value) => value / 255);
    const track = {
        frames: values.length / DIM, fps: file.fps[0] / file.fps[1], values, rest: file.rest, sound: file.sound,
        gate: file.is_gated ? gate : null, // without features a run has no gate to apply either
        speech: gate ? regions(gate) : [],
        level: file.level && pyramid(Float32Array.from(bytes(file.level), (value) => value / 255)), levelHz: file.level_hz,
    };
    track.curves = file.curves.map((curve) => ({ ...curve, ...range(values, track.frames, curve) }));
    return track;
}

function bytes(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** Stretches of speech, [[start, stop]] in frames. */
export function regions(gate) {
    const found = [];
    gate.forEach((value, frame) => {
        if (value < SPEECH) return;
        if (found.at(-1)?.[1] === frame) found.at(-1)[1] = frame + 1;
        else found.push([frame, frame + 1]);
    });
    return found;
}

/** What a curve's lane shows: all of the track, and some more to draw in. */
function range(values, frames, curve) {
    const read = readings(values, frames, curve);
    let [low, high] = [Infinity, -Infinity];
    for (const value of read) [low, high] = [Math.min(low, value), Math.max(high, value)];
    if (!frames) [low, high] = [0, 1];
    const least = curve.usual * 2, middle = (low + high) / 2, span = Math.max(high - low, least) * 1.3;
    return { low: middle - span / 2, high: middle + span / 2 };
}

/** A curve's value at each frame. */
export function readings(values, frames, curve) {
    return Float32Array.from({ length: frames }, (_, frame) => readAt(values, frame, curve));
}

/** All curves as they are drawn. */
export function traced(track, values) {
    return track.curves.map((curve) => pyramid(readings(values, track.frames, curve)));
}
