"""The quick start's page, as Jinja templates: MARKDOWN for reading in a repository, HTML for a browser.

HTML fills the blocks of llava.eval.page.PAGE.
"""

MARKDOWN = """\
# Quick start: {{ accuracy | round(1) }}% of open questions right

easy-VQA, test split, {{ "{:,}".format(total) }} open questions, exact match: {{ accuracy | round(1) }}%
(95% interval {{ interval[0] | round(1) }} to {{ interval[1] | round(1) }}), \
{{ "%+.1f" | format(lead) }} points more than an answer from the question only. \
The projector turned {{ tokens.patches }} patches into {{ tokens.tokens }} visual tokens. \
All steps took {{ seconds | clock }}, with a peak memory of {{ peak_mib | memory }}.

## Accuracy

| answers by | {{ columns | join(" | ") }} |
| --- | {{ (["---"] * columns | length) | join(" | ") }} |
{% for row in rows %}
| {{ row.name }} |{% for cell in row.cells %} {{ cell.percent | round(1) }}% \
[{{ cell.low | round(1) }}, {{ cell.high | round(1) }}] {{ cell.correct }}/{{ cell.total }} |{% endfor %}

{% endfor %}

The brackets contain the 95% interval. The two baselines do not use the image. The first gives each question's
most frequent training answer. The second always gives the most frequent answer of all.

## Loss

![training loss]({{ loss_plot | relative }})

## Visual tokens

| image | grid of the tower | patches | scale factor | tokens into the language model | projector |
| --- | --- | --- | --- | --- | --- |
| {{ tokens.image_size }} px | {{ tokens.grid }}x{{ tokens.grid }} | {{ tokens.patches }} \
| {{ tokens.scale_factor }} | {{ tokens.tokens }} | {{ tokens.projector }} |

## Where the words of an answer attend

{% for path in heatmaps %}
![{{ path.parent.name }}]({{ path | relative }})

{% endfor %}
## Samples

These questions are evenly spaced over the test split, whether the answer is right or wrong.

| question | answer | expected |
| --- | --- | --- |
{% for sample in samples %}
| {{ sample.question | cell }} | {{ sample.said | cell }} | {{ sample.expected }} |
{% endfor %}

## Time and memory

| step | time | peak memory |
| --- | --- | --- |
{% for step in steps %}
| {{ step.name }} | {{ step.seconds | clock }} | \
{{ step.peak_mib | memory }} |
{% endfor %}
| all | {{ seconds | clock }} | {{ peak_mib | memory }} |

## Made with

{% for name, value in made_with.items() %}
- {{ name }}: {{ value }}
{% endfor %}
{% if settings %}
- settings: {{ settings | join(", ") }}
{% endif %}
"""

HTML = """\
{% extends "page" %}
{% block title %}VisualPrism quick start{% endblock %}
{% block content %}
<h1>VisualPrism quick start</h1>
<p>This model has a DINOv2 tower, a VisualPrism projector and SmolLM2-135M. It was trained in two stages on
easy-VQA, and then it answered the open questions of the test split.</p>
<div class="facts">
<div class="fact first"><b>{{ accuracy | round(1) }}%</b>
<span>of {{ "{:,}".format(total) }} open questions right,
95% interval {{ interval[0] | round(1) }} to {{ interval[1] | round(1) }}</span></div>
<div class="fact"><b>{{ "%+.1f" | format(lead) }}</b>
<span>points more than an answer from the question only</span></div>
<div class="fact"><b>{{ tokens.patches }} → {{ tokens.tokens }}</b><span>patches to visual tokens,
scale factor {{ tokens.scale_factor }}</span></div>
<div class="fact"><b>{{ seconds | clock }}</b><span>for all steps, peak memory
{{ peak_mib | memory }}</span></div>
</div>

<section>
<h2>Accuracy</h2>
<table>
<tr><th>answers by</th>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr{% if row.is_model %} class="model"{% endif %}><td>{{ row.name }}</td>
{% for cell in row.cells %}
<td>{{ cell.percent | round(1) }}%<div class="bar"><i style="width: {{ cell.percent | round(1) }}%"></i></div>
<small>{{ cell.low | round(1) }} to {{ cell.high | round(1) }} ·
{{ cell.correct }} of {{ cell.total }}</small></td>
{% endfor %}</tr>
{% endfor %}
</table>
<p class="note">An answer counts if it matches exactly. Below each bar are the 95% interval and the counts.
The two baselines do not use the image. The first gives each question's most frequent training answer. The
second always gives the most frequent answer of all.</p>
</section>

<section>
<h2>Training loss</h2>
<img class="wide" alt="training loss of both stages" src="{{ loss_plot | embed }}">
</section>

<section>
<h2>Visual tokens</h2>
<table>
<tr><th>image</th><th>grid of the tower</th><th>patches</th><th>scale factor</th>
<th>tokens into the language model</th><th>projector</th></tr>
<tr><td>{{ tokens.image_size }} px</td><td>{{ tokens.grid }} × {{ tokens.grid }}</td>
<td>{{ tokens.patches }}</td><td>{{ tokens.scale_factor }}</td>
<td>{{ tokens.tokens }}</td><td>{{ tokens.projector }}</td></tr>
</table>
</section>

{% if heatmaps %}
<section>
<h2>Where the words of an answer attend</h2>
{% for path in heatmaps %}
<figure><figcaption>{{ path.parent.name | replace("_", " ") }}</figcaption>
<img class="wide" alt="heatmap of {{ path.parent.name }}" src="{{ path | embed }}"></figure>
{% endfor %}
</section>
{% endif %}

<section>
<h2>Samples</h2>
<p>These questions are evenly spaced over the test split, whether the answer is right or wrong.</p>
<div class="samples">
{% for sample in samples %}
<div class="sample"><img alt="" src="{{ sample.image | embed }}"><p>{{ sample.question }}</p>
{% set mark = "✓" if sample.right else "✗" %}
<span class="{{ "right" if sample.right else "wrong" }}">{{ mark }} {{ sample.said }}</span>
{% if not sample.right %}<small> (expected: {{ sample.expected }})</small>{% endif %}
</div>
{% endfor %}
</div>
</section>

<section>
<h2>Time and memory</h2>
<table>
<tr><th>step</th><th>time</th><th>peak memory</th></tr>
{% for step in steps %}
<tr><td>{{ step.name | replace("_", " ") }}</td><td>{{ step.seconds | clock }}</td>
<td>{{ step.peak_mib | memory }}</td></tr>
{% endfor %}
<tr><td><b>all</b></td><td><b>{{ seconds | clock }}</b></td><td><b>{{ peak_mib | memory }}</b></td></tr>
</table>
</section>
{% endblock %}
{% block made_with %}
{% if settings %}
<tr><td>settings</td>
<td>{% for setting in settings %}<code>{{ setting }}</code>{{ " " }}{% endfor %}</td></tr>
{% endif %}
{% endblock %}
"""
