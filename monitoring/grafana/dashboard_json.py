"""A board as Grafana's JSON, through Grafana's own typed builders. Values in, text out."""

from __future__ import annotations

import json
from typing import Any, Final, assert_never

from dashboard_values import COLUMNS, Board, Colour, Column, Look, Marks, Panel, Place, Step, Variable, Word, places
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE: Final = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
GPU_BOARD: Final = "ollama-appliance-gpu"
RUNBOOKS: Final = (
    "/monitoring/runbooks"  # as the alerts say; monitoring/README.md tells how to put an address before it
)
ALERTS: Final = "OllamaAppliance"  # begins the name of each
_KEPT: Final = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
_Builder = stat.Panel | timeseries.Panel | statetimeline.Panel | heatmap.Panel | table.Panel


def rendered(board: Board) -> str:
    made = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.text)
        .tags(["ollama-appliance"])
        .refresh("30s")
        .time(board.since, "now")
        .timezone("browser")
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(_other_boards())
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in board.variables:
        made.with_variable(_variable(variable))
    made.with_variable(builders.ConstantVariable("runbooks").label("Runbooks").value(RUNBOOKS))
    for marks in board.marks:
        made.annotation(_marks(marks))
    number = 0
    for row, head, panels in places(board):
        number += 1
        made.with_row(builders.Row(row.title).id(number).grid_pos(_grid(head)))
        for panel, place in panels:
            number += 1
            made.with_panel(_panel(panel, place).id(number))
    plain = json.loads(JSONEncoder().encode(made.build()), object_hook=_without_placement)
    return json.dumps(plain, indent=1, sort_keys=True) + "\n"


def _without_placement(values: dict[str, Any]) -> dict[str, Any]:
    """The builders put all links and annotations into a menu, which is the only value that they know."""
    return {name: value for name, value in values.items() if name != "placement" or value != "inControlsMenu"}


# --- the page --------------------------------------------------------------------------------------------------------


def _other_boards() -> builders.DashboardLink:
    link = builders.DashboardLink("Ollama appliance").type(dashboard.DashboardLinkType.DASHBOARDS)
    return link.tags(["ollama-appliance"]).include_vars(include_vars=True).keep_time(keep_time=True)


def _variable(variable: Variable) -> builders.QueryVariable:
    made = (
        builders.QueryVariable(variable.name)
        .label(variable.label)
        .query(variable.query)
        .datasource(SOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.NATURAL_ASC)
    )
    if variable.current:
        made.current(dashboard.VariableOption(text=variable.current, value=variable.current, selected=True))
    if not variable.many:
        return made
    if not variable.current:
        made.current(dashboard.VariableOption(text="All", value="$__all", selected=True))
    return made.include_all(include_all=True).multi(multi=True).all_value(".+")


def _marks(marks: Marks) -> builders.AnnotationQuery:
    return (
        builders.AnnotationQuery()
        .name(marks.title)
        .datasource(SOURCE)
        .enable(enable=True)
        .icon_color(marks.colour.value)
        .expr(marks.expr)
        .title_format(marks.title)
        .text_format(marks.text)
        .use_value_for_time(use_value_for_time=True)
        .step("15s")
    )


def _grid(place: Place) -> dashboard.GridPos:
    return dashboard.GridPos(h=place.height, w=place.width, x=place.x, y=place.y)


# --- panels ----------------------------------------------------------------------------------------------------------


def _panel(panel: Panel, place: Place) -> _Builder:
    made = _looking(panel)
    made.title(panel.title).description(panel.text).datasource(SOURCE).grid_pos(_grid(place))
    made.height(place.height).span(min(place.width, COLUMNS))
    made.links([_link(f"Runbook: {name}", "${runbooks}/" + f"{(ALERTS + name).lower()}.md") for name in panel.runbooks])
    if panel.look is Look.TABLE:
        return made
    made.unit(panel.unit)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        made.with_target(_target(query.expr, query.legend, letter, heat=panel.look is Look.HEAT))
    if panel.decimals is not None:
        made.decimals(panel.decimals)
    if panel.nothing:
        made.no_value(panel.nothing)
    if panel.words:
        made.mappings([_words(panel.words)])
    if panel.steps:
        made.thresholds(_thresholds(panel.steps))
    if panel.by_gpu:
        # A plain link of Grafana's model: its builder knows no other than dashboards.
        made.data_links([_link("This GPU", _gpu_page("${__field.labels.instance}", "${__field.labels.gpu}"))])
    for pattern, colour in panel.colours:
        made.override_by_regexp(f"^({pattern})$", [_fixed(colour)])
    return made


def _looking(panel: Panel) -> _Builder:
    match panel.look:
        case Look.NUMBER:
            return _number(panel)
        case Look.LINES:
            return _lines(panel)
        case Look.STATES:
            return _states()
        case Look.HEAT:
            return _heat(panel)
        case Look.TABLE:
            return _table(panel)
        case _:
            assert_never(panel.look)


def _number(panel: Panel) -> stat.Panel:
    made = stat.Panel().reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    made.color_mode(common.BigValueColorMode.BACKGROUND if panel.words else common.BigValueColorMode.VALUE)
    made.graph_mode(common.BigValueGraphMode.NONE if panel.words else common.BigValueGraphMode.AREA)
    return made.color_scheme(_scheme(dashboard.FieldColorModeId.THRESHOLDS))


def _lines(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().color_scheme(_scheme(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    shown = [] if panel.bars or panel.points else ["lastNotNull"]
    legend = common_builders.VizLegendOptions().placement(common.LegendPlacement.BOTTOM).show_legend(show_legend=True)
    made.legend(legend.display_mode(common.LegendDisplayMode.LIST).calcs(shown))
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    made.tooltip(tooltip.sort(common.SortOrder.DESCENDING)).line_width(1)
    if panel.least is not None:
        made.min(panel.least)
    if panel.most is not None:
        made.max(panel.most)
    if panel.bars:
        made.draw_style(common.GraphDrawStyle.BARS).fill_opacity(80).stacking(_stacked())
    elif panel.points:
        made.draw_style(common.GraphDrawStyle.POINTS).point_size(6)
    else:
        made.fill_opacity(35 if panel.stacked else 8).show_points(common.VisibilityMode.NEVER)
        if panel.stacked:
            made.stacking(_stacked())
    if panel.steps:
        mode = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        made.thresholds_style(mode)
    return made


def _stacked() -> common_builders.StackingConfig:
    return common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A")


def _states() -> statetimeline.Panel:
    legend = common_builders.VizLegendOptions().placement(common.LegendPlacement.BOTTOM).show_legend(show_legend=True)
    made = statetimeline.Panel().legend(legend.display_mode(common.LegendDisplayMode.LIST).calcs([]))
    made.merge_values(merge_values=True).show_value(common.VisibilityMode.AUTO).row_height(0.85).fill_opacity(75)
    return made.color_scheme(_scheme(dashboard.FieldColorModeId.THRESHOLDS))


def _heat(panel: Panel) -> heatmap.Panel:
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    made = heatmap.Panel().calculate(calculate=False).color(colour).y_axis(heatmap.YAxisConfig().unit(panel.unit))
    return made.filter_values(heatmap.FilterValueRange().le(1e-9))


def _table(panel: Panel) -> table.Panel:
    """Queries become columns, joined by host and GPU; a single one is shown as it comes."""
    made = table.Panel().show_header(show_header=True).cell_height(common.TableCellHeight.SM)
    hidden = {"Time": True, "Value": True, "__name__": True, "job": True}
    names = {"instance": "Host", "gpu": "GPU"}
    for letter, column in zip("ABCDEFGHIJKLMN", panel.columns, strict=False):
        made.with_target(_target(column.expr, "", letter, table=True))
        if column.title:
            names[f"Value #{letter}"] = column.title
            made.override_by_name(column.title, _cell(column))
    if len(panel.columns) > 1:
        made.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    order = {"excludeByName": hidden, "indexByName": {"instance": 0, "gpu": 1}, "renameByName": names}
    made.with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=order))
    if panel.by_gpu:
        page = _gpu_page("${__data.fields.Host}", "${__data.fields.GPU}")
        links = [{"title": "This GPU", "url": page}]
        made.override_by_name("GPU", [dashboard.DynamicConfigValue(id_val="links", value=links)])
    return made


def _cell(column: Column) -> list[dashboard.DynamicConfigValue]:
    found: dict[str, Any] = {"unit": column.unit}
    if column.decimals is not None:
        found["decimals"] = column.decimals
    if column.words:
        found["mappings"] = [_words(column.words).to_json()]
    if column.steps:
        found["thresholds"] = _thresholds(column.steps).build().to_json()
    if column.words or column.steps:
        found["custom.cellOptions"] = {"type": "color-text"}
        found["color"] = {"mode": "thresholds"}
    return [dashboard.DynamicConfigValue(id_val=name, value=value) for name, value in found.items()]


# --- their parts -----------------------------------------------------------------------------------------------------


def _target(expr: str, legend: str, letter: str, *, heat: bool = False, table: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().datasource(SOURCE).expr(expr).ref_id(letter)
    if table:
        return made.instant().format(PromQueryFormat.TABLE)
    made.range().legend_format(legend or "__auto")
    return made.format(PromQueryFormat.HEATMAP if heat else PromQueryFormat.TIME_SERIES)


def _link(title: str, url: str) -> builders.DashboardLink:
    return builders.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url).target_blank(target_blank=True)


def _gpu_page(instance: str, gpu: str) -> str:
    return f"/d/{GPU_BOARD}?var-instance={instance}&var-gpu={gpu}&{_KEPT}"


def _scheme(mode: dashboard.FieldColorModeId) -> builders.FieldColor:
    return builders.FieldColor().mode(mode)


def _fixed(colour: Colour) -> dashboard.DynamicConfigValue:
    return dashboard.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour.value})


def _words(words: tuple[Word, ...]) -> dashboard.ValueMap:
    options = {
        str(word.value): dashboard.ValueMappingResult(text=word.text, color=word.colour.value, index=index)
        for index, word in enumerate(words)
    }
    return dashboard.ValueMap(options=options)


def _thresholds(steps: tuple[Step, ...]) -> builders.ThresholdsConfig:
    made = [dashboard.Threshold(value=step.value, color=step.colour.value) for step in steps]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)
