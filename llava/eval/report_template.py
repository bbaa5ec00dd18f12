"""The evaluation's page, as Jinja templates: MARKDOWN for reading in a repository, HTML for a browser.

HTML fills the blocks of llava.eval.page.PAGE.
"""

MARKDOWN = """\
# {{ model }}

{{ tasks | length }} benchmark(s), {{ "{:,}".format(questions) }} questions, \
{{ tokens }} visual tokens per image, {{ seconds | clock }} for the answers.

## Scores

| benchmark | score | 95% interval | measure | questions | tokens | time | questions/s |
| --- | --- | --- | --- | --- | --- | --- | --- |
{% for task in tasks %}
| {{ task.title }} |\
{% if task.headline %} {{ task.headline.value | round(1) }} \
| {% if task.headline.low is none %}–{% else %}\
{{ task.headline.low | round(1) }} to {{ task.headline.high | round(1) }}{% endif %} | {{ task.measure }} \
{% else %} – | – | submission {% endif %}
| {{ "{:,}".format(task.questions) }}{{ ", a sample" if task.limit }} \
| {{ "%.4g" % task.visual_tokens if task.visual_tokens else "–" }} \
| {{ task.timing.seconds | clock if task.speed else "–" }} \
| {{ task.speed | round(1) if task.speed else "–" }} |
{% endfor %}

Each interval is a bootstrap over the questions. It shows how much the score varies between samples of
questions.
{% if published %}

{{ published_table }}

The average is over GQA, VizWiz, VQAv2, MM-Vet, POPE and MMBench. A – means that a benchmark was not run.\
{{ " Some benchmarks were run only on a sample of their questions." if sampled }}
{% endif %}
{% for task in tasks %}

## {{ task.title }}
{% if task.parts %}

| | {{ task.measures | join(" | ") }} | of |
| --- |{{ " --- |" * (task.measures | length + 1) }}
{% for part, scores in task.parts %}
| {{ part | cell }} |\
{% for score in scores %} {% if score %}{{ score.value | round(1) }} [{{ score.low | round(1) }}, \
{{ score.high | round(1) }}]{% endif %} |{% endfor %} {{ (scores | select | first).total }} |
{% endfor %}
{% endif %}
{% if task.limit %}

- a sample: {{ "{:,}".format(task.questions) }} questions, evenly spaced over the benchmark
{% endif %}
{% if task.scores and task.scores.unparsed %}

- {{ task.scores.unparsed }} answer(s) without a result: no option is named, or the judge gave no score
{% endif %}
{% if task.skipped %}

- {{ task.skipped | length }} question(s) left out and not scored, the first: {{ task.skipped[0][0] }}, \
{{ task.skipped[0][1] | cell }}
{% endif %}
{% if task.submission %}

- submission: {{ task.submission | join(", ") }}, for {{ task.submit_to }}
{% endif %}
{% endfor %}

## Made with

{% for name, value in made_with.items() %}
- {{ name }}: {{ value }}
{% endfor %}
"""

HTML = """\
{% extends "page" %}
{% block title %}{{ model }}: evaluation{% endblock %}
{% block style %}
.pictures { display: flex; gap: 4px; } .pictures img { min-width: 0; flex: 1; }
.sample p { white-space: pre-line; overflow-wrap: anywhere; color: var(--ink); }
.sample span, .sample small { overflow-wrap: anywhere; }
a { color: var(--accent); text-decoration: none; }
summary { cursor: pointer; color: var(--soft); margin: 12px 0; }
{% endblock %}
{% block content %}
<h1>{{ model }}</h1>
<p><code>{{ model_path }}</code></p>
<div class="facts">
{% for task in tasks if task.headline and tasks | length <= 4 %}
<div class="fact{{ " first" if loop.first }}"><b>{{ task.headline.value | round(1) }}
{{- "" if task.in_points else "%" }}</b>
<span>{{ task.title }}, {{ task.measure }}{% if task.headline.low is not none %}; 95% interval
{{ task.headline.low | round(1) }} to {{ task.headline.high | round(1) }}{% endif %}</span></div>
{% endfor %}
{% if tasks | length > 4 %}
<div class="fact first"><b>{{ tasks | length }}</b><span>benchmarks</span></div>
{% endif %}
<div class="fact"><b>{{ tokens }}</b><span>visual tokens per image</span></div>
<div class="fact"><b>{{ "{:,}".format(questions) }}</b><span>questions,
{{ seconds | clock }} for the answers</span></div>
</div>

{% if published %}
<section>
<h2>For comparison with published results</h2>
<table>
<tr>{% for column in published %}<th>{{ column }}</th>{% endfor %}</tr>
<tr>{% for text in published.values() %}<td>{{ text }}</td>{% endfor %}</tr>
</table>
<p class="note">The average is over GQA, VizWiz, VQAv2, MM-Vet, POPE and MMBench. A – means that a benchmark
was not run.{{ " Some benchmarks were run only on a sample of their questions." if sampled }}</p>
</section>
{% endif %}

<section>
<h2>Benchmarks</h2>
<table>
<tr><th>benchmark</th><th>score</th><th>questions</th><th>tokens per image</th><th>time</th>
<th>questions/s</th></tr>
{% for task in tasks %}
<tr class="model"><td><a href="#{{ task.name }}">{{ task.title }}</a></td>
<td>{% if task.headline %}{{ task.headline.value | round(1) }}{{ "" if task.in_points else "%" }}
{% if not task.in_points %}
<div class="bar"><i style="width: {{ task.headline.value | round(1) }}%"></i></div>
{% endif %}
<small>{% if task.headline.low is not none %}
{{ task.headline.low | round(1) }} to {{ task.headline.high | round(1) }} · {% endif %}
{{ task.measure }}</small>{% else %}–<small>for {{ task.submit_to }}</small>{% endif %}</td>
<td>{{ "{:,}".format(task.questions) }}{% if task.limit %}<small>a sample</small>{% endif %}</td>
<td>{{ "%.4g" % task.visual_tokens if task.visual_tokens else "–" }}</td>
<td>{{ task.timing.seconds | clock if task.speed else "–" }}
{% if task.speed and task.timing.answers < task.questions %}
<small>of {{ "{:,}".format(task.timing.answers) }} questions</small>{% endif %}</td>
<td>{{ task.speed | round(1) if task.speed else "–" }}</td></tr>
{% endfor %}
</table>
<p class="note">Below each score is its 95% interval, a bootstrap over the questions. It shows how much the
score varies between samples of questions. Times do not include loading the model.</p>
</section>

{% for task in tasks %}
<section id="{{ task.name }}">
<h2>{{ task.title }}</h2>
{% if task.limit %}
<p>A sample: {{ "{:,}".format(task.questions) }} questions, evenly spaced over the benchmark.</p>
{% endif %}
{% if task.skipped %}
<p><span class="wrong">{{ task.skipped | length }} question(s) left out</span> and not scored, the first:
{{ task.skipped[0][0] }}, {{ task.skipped[0][1] }}</p>
{% endif %}
{% if task.scores and task.scores.unparsed %}
<p>{{ task.scores.unparsed }} answer(s) without a result: no option is named, or the judge gave no score.</p>
{% endif %}
{% if task.submission %}
<p>Submission: {% for file in task.submission %}<code>{{ file }}</code> {% endfor %}, for
{{ task.submit_to }}.</p>
{% endif %}
{% if task.parts %}
<table>
<tr><th></th>{% for measure in task.measures %}<th>{{ measure }}</th>{% endfor %}<th>of</th></tr>
{% for part, scores in task.parts %}
<tr><td>{{ part }}</td>
{% for score in scores %}
<td>{% if score %}{{ score.value | round(1) }}<small>{{ score.low | round(1) }} to
{{ score.high | round(1) }}</small>{% endif %}</td>
{% endfor %}
<td>{{ "{:,}".format((scores | select | first).total) }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if task.samples %}
<details{{ " open" if tasks | length == 1 }}>
<summary>{{ task.samples | length }} answers{{ ", wrong ones first" if task.scores }}</summary>
<div class="samples">
{% for sample in task.samples %}
<div class="sample">
<div class="pictures">{% for picture in sample.pictures %}<img alt="" src="{{ picture }}">{% endfor %}</div>
<p>{{ sample.question }}</p>
{% if sample.credit is none %}
<span>{{ sample.said or "(no answer)" }}</span>
{% else %}
{% set right = sample.credit >= 1 %}
<span class="{{ "right" if right else "wrong" }}">{{ "✓" if right else "✗" }}
{{ sample.said or "(no answer)" }}</span>
{% endif %}
{% if sample.expected and sample.credit != 1 %}<small> (expected: {{ sample.expected }})</small>{% endif %}
{% if sample.credit is not none and 0 < sample.credit < 1 %}
<small> {{ (100 * sample.credit) | round(1) }}% right</small>{% endif %}
</div>
{% endfor %}
</div>
</details>
{% endif %}
</section>
{% endfor %}
{% endblock %}
"""
