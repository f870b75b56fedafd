"""Results of studies and folders of runs as one page of HTML, with all that it shows inside the file.

`results` and `run_folder` read what is there, `estimates` says what it shows, `rows` gives each row its colour and marker;
`clips`, `scatter`, `forest`, `stages`, `tokens`, `curves` and `tables` draw it over `markup`, `frame` and `numbers`; `sections`
and `document` put it together. `page.html`, `page.css` and `page.js` stand beside them as they are.
"""
