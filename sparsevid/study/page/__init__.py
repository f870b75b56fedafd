"""Results of studies and folders of runs as one page of HTML, with all that it shows inside the file.

`run_folder` reads what lies in that of a run; results are read and judged in the room above. `rows` gives each row its colour
and marker; `clips`, `scatter`, `forest`, `stages`, `tokens`, `curves` and `tables` draw it over `markup`, `frame`, `numbers`;
`sections` and `document` put it together. `page.html`, `page.css` and `page.js` stand beside them as they are.
"""
