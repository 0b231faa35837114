/** The timeline's texts in the language that ComfyUI is set to, from locales/<language>/main.json. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SECTION = "flashlipsTimeline";
let texts = { en: {} };

/** Reads the texts that the server hands out; once, before the first node is made. */
export async function load() {
    try {
        const answer = await api.fetchApi("/i18n");
        const all = await answer.json();
        texts = Object.fromEntries(Object.entries(all).map(([language, found]) => [language, found[SECTION] ?? {}]));
    } catch (error) {
        console.warn("FlashLips: the timeline's texts could not be read, so their names are shown.", error);
    }
}

/** A text with its {places} filled in; English where the language lacks it. */
export function words(key, values = {}) {
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    const text = texts[language]?.[key] ?? texts.en?.[key] ?? key;
    return text.replace(/\[(\w+)\]/g, (whole, name) => values[name] ?? whole);
}
