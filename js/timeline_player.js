/** Plays the track: with its sound where there is one, else by the clock. Loops the selection. */

import { api } from "../../scripts/api.js";
import { following } from "./timeline_view.js";

export class Player {
    /** @param {import("./timeline.js").Timeline} timeline */
    constructor(timeline) {
        this.timeline = timeline;
        this.audio = null;
    }

    /** @param {{filename: string, subfolder: string, type: string}|null} file */
    load(file) {
        const url = file && api.apiURL(`/view?${new URLSearchParams(file)}`);
        if (url === this.url) return;
        this.stop();
        this.release();
        this.url = url;
        if (url) {
            this.audio = new Audio(url);
            this.audio.preload = "auto";
        }
    }

    toggle() {
        if (this.timeline.state.isPlaying) this.stop();
        else this.start();
    }

    start() {
        const { state } = this.timeline, { track, selection } = state;
        if (!track?.frames) return;
        const first = selection?.start ?? 0, end = selection?.stop ?? track.frames;
        if (state.playhead < first || state.playhead >= end - 1) state.playhead = first;
        state.isPlaying = true;
        this.setTime(state.playhead / track.fps);
        this.audio?.play().catch(() => {}); // a sound that is gone or not allowed: the picture plays on by the clock
        this.tick();
    }

    stop() {
        cancelAnimationFrame(this.asked);
        this.audio?.pause();
        if (!this.timeline.state.isPlaying) return;
        this.timeline.state.isPlaying = false;
        this.timeline.refresh();
    }

    seek(frame) {
        if (this.timeline.state.track) this.setTime(frame / this.timeline.state.track.fps);
    }

    setTime(seconds) {
        this.began = performance.now() - seconds * 1000;
        if (this.audio) this.audio.currentTime = seconds;
    }

    time() {
        const isHeard = this.audio && !this.audio.paused && !this.audio.ended;
        return isHeard ? this.audio.currentTime : (performance.now() - this.began) / 1000;
    }

    tick() {
        const { timeline } = this, { state } = timeline, { track, selection } = state;
        const first = selection?.start ?? 0, end = selection?.stop ?? track.frames;
        let frame = Math.floor(this.time() * track.fps);
        if (frame >= end) {
            if (!selection) return timeline.seek(end - 1), this.stop();
            this.setTime(first / track.fps);
            this.audio?.play().catch(() => {});
            frame = first;
        }
        state.view = following(state.view, frame, track.frames);
        timeline.seek(Math.max(frame, 0), true);
        this.asked = requestAnimationFrame(() => this.tick());
    }

    release() {
        this.audio?.pause();
        this.audio?.removeAttribute("src"); // lets go of the file
        this.audio = null;
    }

    dispose() {
        this.stop();
        this.release();
    }
}
