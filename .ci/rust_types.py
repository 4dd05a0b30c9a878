"""Writes the types of rustdoc's JSON as Rust."""


def ids(value):
    """Yields the id of each type and trait in a value."""
    if isinstance(value, dict):
        yield from [value["id"]] if "id" in value else []
        value = list(value.values())
    for inner in value if isinstance(value, list) else []:
        yield from ids(inner)


def ty(t):
    if t == "infer":
        return "_"
    ((kind, v),) = t.items()
    match kind:
        case "resolved_path":
            return path(v)
        case "dyn_trait":
            traits = [poly(trait) for trait in v["traits"]]
            return "dyn " + " + ".join(traits + [v["lifetime"]] * bool(v["lifetime"]))
        case "generic" | "primitive":
            return "!" if v == "never" else v
        case "function_pointer":
            return f"{header(v)}fn{signature(v['sig'], names=False)}"
        case "tuple":
            return f"({', '.join(map(ty, v))}{',' * (len(v) == 1)})"
        case "slice":
            return f"[{ty(v)}]"
        case "array":
            return f"[{ty(v['type'])}; {v['len']}]"
        case "impl_trait":
            return "impl " + joined(v)
        case "raw_pointer":
            return f"*{'mut' if v['is_mutable'] else 'const'} {ty(v['type'])}"
        case "borrowed_ref":
            inner = ty(v["type"])
            inner = f"({inner})" if " + " in inner and inner[:4] in ("dyn ", "impl") else inner
            lifetime = v["lifetime"] + " " if v["lifetime"] else ""
            return f"&{lifetime}{'mut ' * v['is_mutable']}{inner}"
        case "qualified_path":
            own = ty(v["self_type"])
            own = f"<{own} as {path(v['trait'])}>" if v["trait"] else own
            return f"{own}::{v['name']}{arguments(v['args'])}"
    raise ValueError(f"an unknown type in rustdoc's JSON: {kind}")


def path(p):
    """Writes the last name of a path and its arguments.

    The code may import a type or write its whole path, which is no difference to a user. Only
    `io::Error`, `io::Result`, `fmt::Error` and `fmt::Result` keep their module.
    """
    *modules, name = p["path"].split("::")
    kept = name in ("Error", "Result") and modules and modules[-1] in ("io", "fmt")
    return (f"{modules[-1]}::" if kept else "") + name + arguments(p["args"])


def arguments(args):
    if not args:
        return ""
    if "parenthesized" in args:
        output = args["parenthesized"]["output"]
        inputs = ", ".join(map(ty, args["parenthesized"]["inputs"]))
        return f"({inputs})" + (f" -> {ty(output)}" if output else "")
    args = args["angle_bracketed"]
    parts = [argument(a) for a in args["args"]]
    for c in args["constraints"]:
        ((kind, v),) = c["binding"].items()
        parts.append(c["name"] + (f" = {argument(v)}" if kind == "equality" else bounds(v)))
    return f"<{', '.join(parts)}>" if parts else ""


def argument(a):
    if a == "infer":
        return "_"
    ((kind, v),) = a.items()
    return {"type": ty, "lifetime": str, "const": lambda v: v["expr"]}[kind](v)


def poly(trait):
    """Writes a trait with the lifetimes that it is generic over: `for<'a> Fn(&'a u8)`."""
    lifetimes = ", ".join(p["name"] for p in trait["generic_params"])
    return (f"for<{lifetimes}> " if lifetimes else "") + path(trait["trait"])


def joined(bs):
    def bound(b):
        ((kind, v),) = b.items()
        if kind == "trait_bound":
            return "?" * (v["modifier"] == "maybe") + poly(v)
        return v if kind == "outlives" else "use<..>"

    return " + ".join(map(bound, bs))


def bounds(bs):
    return ": " + joined(bs) if bs else ""


def generics(g):
    def param(p):
        ((kind, v),) = p["kind"].items()
        if kind == "lifetime":
            return p["name"] + (": " + " + ".join(v["outlives"]) if v["outlives"] else "")
        if kind == "const":
            default = f" = {v['default']}" if v["default"] else ""
            return f"const {p['name']}: {ty(v['type'])}{default}"
        default = f" = {ty(v['default'])}" if v["default"] else ""
        return p["name"] + bounds(v["bounds"]) + default

    params = g["params"] if g else []
    # An `impl Trait` among the arguments is a synthetic parameter.
    params = [p for p in params if not p["kind"].get("type", {}).get("is_synthetic")]
    return f"<{', '.join(map(param, params))}>" if params else ""


def requirements(g):
    """Returns the bounds of the parameters of an `impl` as predicates of a `where`."""
    bounded = [(p["name"], p["kind"].get("type", {}).get("bounds")) for p in g["params"]]
    predicates = [{"type": {"generic": name}, "bounds": bs} for name, bs in bounded if bs]
    return [{"bound_predicate": p} for p in predicates] + g["where_predicates"]


def where(g):
    def predicate(p):
        ((kind, v),) = p.items()
        if kind == "lifetime_predicate":
            return f"{v['lifetime']}: {' + '.join(v['outlives'])}"
        return ty(v["type"]) + bounds(v["bounds"])

    predicates = [predicate(p) for p in g["where_predicates"]] if g else []
    return " where " + ", ".join(predicates) if predicates else ""


def header(f):
    words = [word for word in ("const", "async", "unsafe") if f["header"][f"is_{word}"]]
    return "".join(word + " " for word in words)


def signature(sig, names=True):
    def input(name, t):
        text = ty(t)
        if name == "self" and text.split()[-1].lstrip("&") == "Self":
            return text.replace("Self", "self")
        return f"{name}: {text}" if names else text

    inputs = ", ".join(input(*i) for i in sig["inputs"])
    return f"({inputs})" + (f" -> {ty(sig['output'])}" if sig["output"] else "")


def function(place, f):
    g = f["generics"]
    return f"pub {header(f)}fn {place}{generics(g)}{signature(f['sig'])}{where(g)}"
