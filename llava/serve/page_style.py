"""Fonts and style sheet of the web page."""

FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
# A toast shows an error, so the panels that gradio lays over every output after an error are hidden
CSS = """
[data-testid="status-tracker"]:has(.error) { display: none !important; }
html { overflow-anchor: none; }
.gradio-container > .main { padding: 16px clamp(12px, 2.5vw, 32px) !important; }
#title .html-container, #looked .html-container, #budgets .html-container { padding: 0 !important; }
#title h1 { font-size: 1.6em; margin: 0; }
#title p { margin: 0.3em 0 0; }
#page h2 { font-size: 1.1em; margin: 0; }
#page h2 + p { margin: 0.3em 0 0; }
#page { display: grid; align-items: start; }
#page { grid-template: "said looked" "asking settings" "budgets budgets" / 3fr 2fr; }
#page:not(:has(#looked)) { grid-template: "said" "asking" "settings" "budgets" / 1fr; }
#said { grid-area: said; align-self: stretch; position: relative; min-height: 430px; }
#looked { grid-area: looked; }
#asking { grid-area: asking; }
#buttons { display: grid; grid-template-columns: repeat(auto-fit, minmax(110px, 1fr)); gap: 8px; }
#buttons button { min-width: 0; padding: 4px; white-space: nowrap; }
#settings { grid-area: settings; }
#budgets { grid-area: budgets; }
#budgets .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 0 12px; }
#budgets article { display: grid; grid-template-rows: subgrid; grid-row: span 4; max-width: 320px; }
#budgets article { margin-top: 12px; padding: 12px; font-size: 0.85em; }
#budgets article { background: var(--block-background-fill); border-radius: var(--block-radius); }
#budgets h3 { font-size: 1.2em; margin: 0; }
#budgets article p { margin: 4px 0; }
#budgets .answer { font-size: 1.2em; font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
#budgets .answer { max-height: 12em; overflow-y: auto; }
#budgets p:empty { display: none; }
#budgets .state::first-letter { text-transform: uppercase; }
#budgets img, #budgets .none { width: 100%; margin-top: 4px; }
#words .textfield { max-height: 8em; overflow-y: auto; }
#words [role=button] { cursor: pointer; margin-right: 4px; padding: 0 4px; }
#words [role=button]:not(.highlighted) { border: 1px solid var(--color-accent); border-radius: 4px; }
#heat .grid-wrap { min-height: 0; height: auto !important; }
#heat .thumbnail-item { aspect-ratio: auto; height: auto; border: none; background: none; }
#heat img { object-fit: contain; height: auto; max-height: 300px; }
#timing:not(:has(p)) { display: none; }
#chat { position: absolute; inset: 0; height: auto !important; }
#chat .message-buttons-right { display: none; }
#chat .message img { max-height: 160px; width: auto; }
#chat .placeholder-content { height: 100%; justify-content: center; }
#chat .placeholder { flex: none; height: auto; padding: 8px 16px; }
#chat .examples { grid-template-columns: minmax(0, 400px); justify-content: center; gap: 8px; padding: 8px; }
#chat .example { border: 1px solid var(--border-color-primary); padding: 8px; }
#chat .example-content { flex-direction: row; align-items: center; gap: 12px; }
#chat .example-image-container, #chat .example-image { width: 64px; height: 64px; margin: 0; flex: none; }
@media (max-width: 640px) {
  #page { grid-template: "said looked" "asking asking" "budgets budgets" "settings settings" / 55fr 45fr; }
  #page { gap: 8px; }
  #page:has(#chat .placeholder) { grid-template: "said" "asking" "looked" "budgets" "settings" / 1fr; }
  #page:has(#chat .placeholder) #said { min-height: 330px; }
  #said { min-height: 260px; }
  #chat .message img { max-height: 80px; }
  #chat .message-buttons-left { display: none; }
  #chat .bubble-wrap { padding-top: 0; }
  #chat .example-image-container, #chat .example-image { width: 44px; height: 44px; }
  #timing p, #line p { font-size: 0.75em; }
  .column { gap: 8px !important; }
}
"""
