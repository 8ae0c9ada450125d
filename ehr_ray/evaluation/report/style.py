"""Style of the report: light, dark and print, with system fonts only."""

from typing import Final

CSS: Final = """
:root{--ink:#1d232b;--soft:#5c6672;--line:#e3e6ea;--card:#fff;--page:#f5f6f8;--blue:#0072b2;
--good:#0a7a57;--good-bg:#e7f5ef;--mixed:#8a6100;--mixed-bg:#fdf4de;--bad:#b3390a;
--bad-bg:#fdece5;--neutral:#4a5560;--neutral-bg:#eceff2;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ink:#e7eaee;--soft:#a0aab5;--line:#333b45;--card:#1d232a;
--page:#14181d;--blue:#56b4e9;--good:#5fd0a5;--good-bg:#12332a;--mixed:#f0c14b;--mixed-bg:#382d10;
--bad:#ff9a70;--bad-bg:#3c2116;--neutral:#b4bec8;--neutral-bg:#272e36}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:36px 22px 60px;display:flex;flex-wrap:wrap;gap:18px}
main>*{flex:1 1 100%;min-width:0;margin:0}main>.half{flex:1 1 440px}
h1{font-size:28px;line-height:1.2;letter-spacing:-.015em;margin:0 0 14px;text-wrap:balance}
h2{font-size:17px;margin:0 0 14px;letter-spacing:-.005em}
section:not(.verdict){background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:20px 22px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px 22px;
margin:0}
.facts+.scroll{margin-top:18px}
.facts dt{color:var(--soft);font-size:12px}
.facts dd{margin:1px 0 0;font-weight:550;overflow-wrap:anywhere}
.verdict{display:flex;gap:16px;border-radius:12px;padding:18px 22px;border-left:6px solid}
.verdict p{margin:2px 0;font-size:18px;line-height:1.4;font-weight:620;color:var(--ink)}
.verdict ul{margin:10px 0 0;padding-left:18px;color:var(--ink)}
.verdict .mark{flex:none;width:32px;height:32px;border-radius:50%;display:grid;place-items:center;
font-weight:700;color:var(--card);font-size:17px}
.verdict.good{background:var(--good-bg);border-color:var(--good)}
.verdict.mixed{background:var(--mixed-bg);border-color:var(--mixed)}
.verdict.bad{background:var(--bad-bg);border-color:var(--bad)}
.verdict.neutral{background:var(--neutral-bg);border-color:var(--neutral)}
.good .mark{background:var(--good)}.mixed .mark{background:var(--mixed)}
.bad .mark{background:var(--bad)}.neutral .mark{background:var(--neutral)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;min-width:46%}
.compare{width:100%}.compare tbody th{min-width:200px;line-height:1.35}
.compare td,.compare th{padding-block:9px}.compare td,.compare thead th{padding-inline:8px}
th,td{text-align:right;padding:6px 12px;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--soft);font-weight:600;font-size:12.5px;vertical-align:bottom;
max-width:130px}
.compare thead th{white-space:nowrap}
tbody th,thead th:first-child{text-align:left;font-weight:500}
th:first-child{padding-left:0}td:last-child,th:last-child{padding-right:0}
tbody tr:last-child>*{border-bottom:0}
td small{display:block;color:var(--soft);font-size:11.5px;white-space:nowrap}
tr.model{background:color-mix(in srgb,var(--blue) 9%,transparent)}
tr.model th{font-weight:700;padding-left:10px}
.compare th:first-child{padding-left:10px}.compare td:last-child{padding-right:10px}
.gap span{font-weight:650}
.gap.bad span{color:var(--bad)}.gap.good span{color:var(--good)}.gap.mixed span{color:var(--mixed)}
td.word{font-weight:600;color:var(--soft)}td.word.bad{color:var(--bad)}td.word.good{color:var(--good)}
td.word.mixed{color:var(--soft);font-weight:400}
.scroll+p{margin:14px 0 0}
.strip{display:block;margin:2px 0 0 auto}
.strip line{stroke:var(--soft);stroke-width:2.2;stroke-linecap:round}.strip circle{fill:var(--soft)}
.strip.model line{stroke:var(--blue)}.strip.model circle{fill:var(--blue)}
.caption,figcaption{color:var(--soft);font-size:13.5px;margin:12px 0 0;max-width:80ch}
.scroll+.caption+.scroll{margin-top:18px}
figure{margin:0}
figure img{display:block;max-width:100%;height:auto;margin:0 auto;background:#fff;border-radius:8px}
@media (prefers-color-scheme:dark){figure img{padding:10px}}
details{padding:6px 0}
summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
background:var(--page);border-radius:8px;padding:14px;margin:10px 0}
ul{margin:0;padding-left:20px}
@media print{body{background:#fff;font-size:12px}main{max-width:none;padding:0}
section{break-inside:avoid}section:not(.verdict){border-color:#ccc;padding:12px 14px}
details:not([open]){display:none}
.verdict,.strip,tr.model{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
