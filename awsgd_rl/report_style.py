"""The style of a report's page."""

from typing import Final

STYLE: Final = """
:root { color-scheme: light; --ink: #222; --soft: #5a5a5a; --line: #dcdcdc; --blue: #0072B2; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 74rem; margin: 2rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h3 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.6rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; }
a { color: var(--blue); }
.about { color: var(--soft); margin: .3rem 0; max-width: 52rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th { font-weight: 600; vertical-align: bottom; }
th, td { padding: .3rem 0 .3rem 1.5rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: #fff; }
.wide { overflow-x: auto; } .tall { max-height: 30rem; overflow-y: auto; }
.interval { color: var(--soft); font-size: .88em; }
img { max-width: 100%; height: auto; display: block; margin: 1.5rem auto; }
pre { background: #f5f5f5; padding: .7rem 1rem; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
details { margin: .8rem 0; } summary { cursor: pointer; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .92rem; color: var(--soft); min-height: 3.1em; line-height: 1.4;
  margin-bottom: .3rem; }
figcaption b { color: var(--ink); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
  gap: 1rem 1.5rem; }
.plot { height: 22rem; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr));
  gap: 1.2rem; align-items: start; }
.maps figure { max-width: 34rem; }
.maps canvas { display: block; width: 100%; border: 1px solid #8a8a8a; }
.controls { display: flex; align-items: center; gap: .9rem; margin: .8rem 0 1rem; }
.controls input { flex: 1; min-width: 6rem; accent-color: var(--blue); }
.controls output { min-width: 21rem; font-variant-numeric: tabular-nums; }
.controls button { font: inherit; padding: .25rem .9rem; min-width: 5.2rem; cursor: pointer;
  border: 1px solid #8a8a8a; border-radius: 4px; background: #fff; }
.controls button:hover { background: #f2f2f2; }
:focus-visible { outline: 3px solid #56B4E9; outline-offset: 1px; }
.scales { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: .2rem 0 .9rem; font-size: .92rem;
  color: var(--soft); }
.scales > span { display: inline-flex; align-items: center; gap: .5rem; }
.bar { width: 9rem; height: .8rem; border: 1px solid #8a8a8a; }
.bar.heat { background: linear-gradient(90deg, #FFFFFF, #CFE3F2, #4A98C9, #08306B); }
.bar.weight { background: linear-gradient(90deg, #F3D9A4, #E69F00, #D55E00, #5C1A00); }
.readout { min-height: 1.5em; margin: .2rem 0; font-size: .92rem; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.drawn tr:hover td, .drawn tr:focus td { background: #eef5fa; }
.swatch { display: inline-block; width: 2.2rem; height: .7rem; }
@media (max-width: 50rem) { .controls { flex-wrap: wrap; } .controls output { min-width: 100%; } }
@media print { .controls button, .failures { display: none; } }
"""
