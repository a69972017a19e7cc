"""The style sheet of a report: light and dark, phone first, system fonts (which have Chinese), nothing to download."""

STYLE = """
:root{--ink:#1f2430;--soft:#5d6472;--page:#f6f7f9;--card:#fff;--edge:#dfe3ea;--good:#0a7d4f;--bad:#c02b2b;
--mark:#3b82f6}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ec;--soft:#a0a7b4;--page:#14161a;--card:#1d2026;--edge:#343945;
--good:#34d399;--bad:#f87171}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,"Noto Sans","PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:1.5rem;margin:.3em 0;overflow-wrap:anywhere}h2{font-size:1.2rem;margin:1.8em 0 .6em}h3{font-size:1rem;
margin:1.2em 0 .5em}
nav{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.9rem}a{color:var(--mark)}
header .cards{grid-template-columns:repeat(auto-fit,minmax(min(100%,255px),1fr));align-items:start}nav{margin:12px 0}
.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.pictures{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));align-items:start}
.card,figure{margin:0;background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px;
overflow-x:auto;min-width:0}
figure.wide{grid-column:1/-1}
figure svg{display:block;width:100%;height:auto;max-width:760px}
figure.wide svg{max-width:none}
.big{font-size:2.2rem;font-weight:650;line-height:1.15;font-variant-numeric:tabular-nums}
.badge{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:1px 10px;font-size:.9rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:3px 14px;margin:0}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--edge);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--edge);vertical-align:top}
td{word-break:keep-all}td.p{word-break:normal;overflow-wrap:anywhere;min-width:13em}td:first-child{min-width:6.5em}
tr:last-child td{border-bottom:0}th{color:var(--soft);font-weight:600;white-space:nowrap;word-break:keep-all}td.n,th.n{text-align:right;
white-space:nowrap}th.n{white-space:normal}.pictures+.scroll{margin-top:12px}
pre{margin:0;padding:12px;overflow-x:auto;font-size:.85rem;background:var(--card);border:1px solid var(--edge);
border-radius:10px;max-height:30em}
.worst dd>img,.worst dd>svg{max-width:100%;max-height:180px;image-rendering:auto}
.worst .value{max-height:11em;overflow:auto}
.label{border:1px solid var(--edge);border-radius:6px;padding:0 6px}
mark{background:color-mix(in srgb,var(--mark) 22%,transparent);color:inherit;border-radius:5px;padding:0 3px}
.tokens{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75}.tokens>*{border-radius:3px;padding:0 1px;margin-right:1px;
box-shadow:inset 0 0 0 1px color-mix(in srgb,var(--edge) 60%,transparent)}.tokens>span{color:var(--soft)}
sub{color:var(--soft);font-size:.72em;margin-left:3px}
summary{cursor:pointer;padding:6px 0}
@media (max-width:480px){main{padding:10px}th,td{padding:5px 4px}table{font-size:.8rem}td:first-child{min-width:5.5em}}
@media print{body{background:#fff}.card,figure,.scroll,pre{break-inside:avoid}}
"""
