"""HTML that a browser reads otherwise than one may expect: each as a HyperText shows it, and inline."""

DOCUMENTS = (
    "plain text, <b>bold</b> &amp; 😀<br>after a break",
    "a<noscript><p class=''>hid <img src=x alt='' style='display : none'> &amp; den</p></noscript>b",
    "<noscript>first</noscript>b<p>c</p>",
    "a<template><p>in a template</p></template>b",
    "a<textarea>\n <b>x</b> &lt;y \n</textarea>b",
    "<title>first of all</title>a<title>hid &amp; den</title>b",
    "a<xmp><b>shown &amp; raw</b></xmp>b",
    "a<noembed><i>hid</i></noembed>b<noframes><i>hid &lt;</i></noframes>c",
    "a<plaintext><b>all &amp; raw</b></plaintext>c",
    (
        "a<iframe srcdoc='<p>x</p>'>fallback</iframe>b"
        "<iframe src='https://www.youtube.com/embed/x'>f &amp; <b>g</b></iframe>c"
    ),
    "a<select><option>one<option>two<optgroup label=g><option>three</select>b<select><div>x</div></select>",
    "<table>foster<tr><td>x<tr><p>moved</p><td>y</table>z",
    "<table><caption>c</caption><tbody><tr><th>h<td>d<table><tr><td>inner</table></table>",
    "a<svg><title><p>x</p></title><desc>d</desc><text>t</text><style>s &amp;</style></svg>b<svg/>c<g/>d",
    "a<math><mi>x<p>y</math>z<math><annotation-xml encoding='text/html'><p>q</p></annotation-xml></math>",
    "a<svg><foreignObject><div>x<br/>y</div></foreignObject></svg><svg><![CDATA[cdata]]></svg>b",
    "a\r\nb\rc\n\rd<pre>\r\n\r\nx\r\n  y</pre>e&#13;&#10;f&#13;g",
    "a&#0;b&#x80;c&#x9f;d&#xD83D;e&#1114112;f&notit;g&amp;lt;h&lt<i>j</i>&ampx &unknown; &&",
    "a<!-- c > -->b<!-->c<!--->d<!-- x --!> y -->e<!doctype html>f<?php x ?>g<![CDATA[h]]>i</>j</ p>k",
    "a<p>b<div>c</p>d</div></p>e</br>f<p><table><tr><td>g</table>h",
    "<ul><li>a<li>b<ul><li>c</ul><dl><dt>d<dd>e<dt>f</dl></ul>g<ruby>漢<rp>(</rp><rt>kan</rt></ruby>",
    "<b><i>mis</b>nested</i> <a href=x>one<a href=y>two</a> <button>a<button>b</button>",
    (
        "<div hidden>unseen</div>a<p style='display:none'>unseen</p>b"
        "<dialog>unseen</dialog>c<dialog open>d</dialog>"
    ),
    (
        "<style>p { color: red } /* &amp; */</style><p>a</p><script>var x = '<b>'</script>b"
        "<script><!-- </script>c"
    ),
    "<head><title>t</title><style>s</style></head><body class=x>a</body>b<html lang=de>c",
    (
        "<form>a<form>b</form>c<input type=hidden value=d>"
        "<input value=e>f</form><fieldset><legend>l</legend>m</fieldset>"
    ),
    "<details><summary>s</summary>closed</details><details open><summary>t</summary>open</details>u",
    "<pre>\n\nx &lt; y\n    indented\n</pre>z<listing>\na\nb</listing>",
    "a<video>no video</video>b<audio>no audio</audio>c<canvas>no canvas</canvas>d<object>object</object>e",
    "a<datalist><option>x</datalist>b<progress>p</progress>c<meter>m</meter>d",
    "<x-y>own <slot>s</slot></x-y><center>c</center><font>f</font><nobr>n<nobr>m</nobr>",
    "word\u2028line\u2029paragraph\u0085next\u00a0nbsp\u200bzero\ufefflast\u3000wide",
    "e\u0301 👨‍👩‍👧 🇩🇪 𠮷 ﷽ 😀<b>😀</b>\U0010ffff",
    "<h1>One</h1>\n\n  <p>two   three\t\nfour</p>  five  ",
    "cut <b>off <i title='unclosed>x",
    "cut <",
)
FRAMESET = "<frameset><frame src=x></frameset>"
