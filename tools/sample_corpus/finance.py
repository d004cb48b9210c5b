"""Quarterly reports whose figures agree with each other, market notes, tables, filings and news about companies."""

from .grammar import join_list
from .words import SHARED

QUARTERS = ("first", "second", "third", "fourth")
SEGMENTS = ("North America", "Europe", "Asia Pacific", "Latin America", "Industrial", "Consumer", "Services",
            "Wholesale", "Licensing", "Government")  # fmt: skip

RULES = SHARED | {
    "good": ["higher volumes", "favorable pricing", "strong demand for {product}", "lower input costs", "cost discipline",
             "the acquisition of {company}", "new contracts with {customer}", "an improved product mix",
             "growth in recurring revenue", "better utilization of our plants", "a weaker dollar"],
    "bad": ["higher freight costs", "softer demand for {product}", "unfavorable exchange rates", "wage inflation",
            "restructuring charges", "the loss of a contract with {customer}", "inventory write-downs",
            "higher interest expense", "delays at the {town} plant", "competition on price", "rising raw material costs"],
    "product": ["packaging", "industrial pumps", "cloud subscriptions", "frozen foods", "medical devices", "steel wire",
                "freight services", "home loans", "semiconductors", "diesel engines", "insurance policies", "solar panels",
                "office furniture", "specialty chemicals", "airline tickets", "cotton yarn"],
    "customer": ["government agencies", "large retailers", "car makers", "hospitals", "utilities", "regional banks",
                 "small businesses", "telecom operators", "food producers"],
    "title": ["Chief Executive Officer", "Chief Financial Officer", "Chairman", "Treasurer", "Head of Investor Relations"],
    "analyst": ["an analyst at {company}", "{person} of {company}", "a portfolio manager in {town}",
                "the research desk at {company}"],
    "bond": ["two-year note", "ten-year bond", "thirty-year bond", "municipal index", "corporate spread"],
    "commodity": ["crude oil", "natural gas", "copper", "gold", "wheat", "coffee", "aluminum", "iron ore", "silver"],
    "rose": ["rose", "climbed", "gained", "advanced", "added", "increased"],
    "fell": ["fell", "slipped", "lost", "declined", "dropped", "retreated"],
    "percent": lambda w: f"{w.number(0, 14)}.{w.number(0, 9)} percent",
    "small": lambda w: f"{w.number(0, 2)}.{w.number(0, 9)} percent",
    "points": lambda w: f"{w.number(1, 40)} basis points",
    "price": lambda w: f"${w.number(4, 240)}.{w.number(0, 99):02d}",
    "millions": lambda w: f"${w.number(2, 950)} million",
    "reason": ["as investors weighed {event}", "after {event}", "on hopes of {event}", "amid concern about {event}"],
    "event": ["a pause in interest rates", "the latest inflation figures", "weak factory orders", "strong bank earnings",
              "a stronger labor market", "new tariffs on {product}", "the budget talks", "a surprise cut in production",
              "a rise in mortgage applications", "falling inventories of {commodity}"],
    "outlook": ["We expect revenue for the full year to be about {millions}, {growth} from the year before.",
                "Management reaffirmed its guidance for fiscal {year}.",
                "Capital expenditures are expected to be about {millions}, mostly at the {town} plant.",
                "We remain cautious about {product} but see steady orders from {customer}.",
                "The effective tax rate for the year is expected to be near {percent}.",
                "The Company intends to repurchase up to {millions} of its common stock.",
                "Free cash flow will be used first to reduce debt."],
    "growth": ["unchanged", "up {small}", "up {percent}", "down {small}"],
    "risk": ["Our results may vary because of {bad}.", "We depend on {customer} for a large part of our revenue.",
             "Changes in interest rates could raise the cost of our borrowings.",
             "An impairment of goodwill from the acquisition of {company} would reduce earnings.",
             "Our hedges of {commodity} may not cover all of our exposure.",
             "The covenants of our credit facility limit further borrowing and the payment of dividends."],
    "market_sentence": [
        "Shares of {company} {rose} {percent} to {price} {reason}.", "Shares of {company} {fell} {percent} to {price} {reason}.",
        "The yield on the {bond} {rose} {points}.", "The yield on the {bond} {fell} {points} {reason}.",
        "{^commodity} {rose} {small} {reason}.", "{^commodity} {fell} {small}, its largest move since {month}.",
        "Volume was light, with {few} stocks declining for every one that gained.",
        "\"The market has priced in {event},\" said {analyst}.", "\"We are buyers of {commodity} here,\" said {analyst}.",
        "Traders will look to {event} on {weekday}.", "{company} raised {millions} in a sale of notes due {year}.",
        "{company} agreed to buy {company} for {millions} in cash and stock."],
}  # fmt: skip


def millions(value):
    return f"${value:,.1f} million"


def change(now, before):
    share = 100.0 * (now - before) / before
    return f"{'an increase' if share >= 0 else 'a decrease'} of {abs(share):.1f} percent"


def report(w):
    name = w.expand("{issuer=company}")
    quarter, year = w.number(0, 3), w.number(1994, 2023)
    parts = w.several(SEGMENTS, w.number(2, 4))
    before = [w.number(300, 9000) / 10 for _ in parts]
    now = [round(value * (0.85 + 0.4 * w.random()), 1) for value in before]
    revenue, revenue_before = sum(now), sum(before)
    margin = 0.02 + 0.16 * w.random()
    income, income_before = revenue * margin, revenue_before * (margin + 0.02 * (w.random() - 0.5))
    shares = w.number(20, 400)
    title = f"{name} Reports {QUARTERS[quarter].capitalize()} Quarter {year} Results"
    lines = [
        title, "",
        w.expand("{town}, {month} ") + f"{w.number(1, 28)}, {year} - {name} Inc. today reported revenue of {millions(revenue)} "
        f"for the {QUARTERS[quarter]} quarter of {year}, {change(revenue, revenue_before)} from {millions(revenue_before)} "
        f"a year earlier. Net income was {millions(income)}, or ${income / shares:.2f} per diluted share, compared with "
        f"{millions(income_before)}, or ${income_before / shares:.2f} per diluted share.", "",
        w.expand("\"Results reflect {good} and {good}, partly offset by {bad},\" said {person}, {title}. {outlook}"), "",
        "Segment revenue (in millions)", f"{'':<18}{year:>10}{year - 1:>10}{'Change':>10}",
    ]  # fmt: skip
    for part, a, b in zip(parts, now, before):
        lines.append(f"{part:<18}{a:>10.1f}{b:>10.1f}{100 * (a - b) / b:>9.1f}%")
    lines += [f"{'Total':<18}{revenue:>10.1f}{revenue_before:>10.1f}"
              f"{100 * (revenue - revenue_before) / revenue_before:>9.1f}%", ""]  # fmt: skip
    for part, a, b in zip(parts, now, before):
        cause = "{good}" if a >= b else "{bad}"
        lines.append(w.expand(f"Revenue in {part} was {millions(a)}, {change(a, b)}, due to {cause}."))
    lines += ["", "Outlook", w.paragraph("outlook", 2, 4), "", "Risk factors", w.paragraph("risk", 2, 5)]
    return title, "\n".join(lines)


def market(w):
    title = w.expand("Markets on {weekday}: {commodity} and the {bond}")
    paragraphs = [w.paragraph("market_sentence", 2, 5) for _ in range(w.number(3, 6))]
    return title, title + "\n\n" + "\n\n".join(paragraphs)


def balance_sheet(w):
    name = w.expand("{issuer=company}")
    year = w.number(1994, 2023)
    assets = {label: w.number(50, 9000) for label in ("Cash and cash equivalents", "Accounts receivable", "Inventories",
                                                      "Property, plant and equipment", "Goodwill")}  # fmt: skip
    total = sum(assets.values())
    debt, payable = int(total * (0.2 + 0.3 * w.random())), int(total * (0.05 + 0.15 * w.random()))
    rows = [("ASSETS", None), *assets.items(), ("Total assets", total), ("LIABILITIES AND EQUITY", None),
            ("Accounts payable", payable), ("Long-term debt", debt), ("Shareholders' equity", total - debt - payable),
            ("Total liabilities and equity", total)]  # fmt: skip
    title = f"{name} Inc. Balance Sheet, December 31, {year}"
    body = [f"{label:<34}{'' if value is None else f'{value:>12,}'}".rstrip() for label, value in rows]
    notes = [w.expand(f"Note {n}. {{risk}} {{outlook}}") for n in range(1, w.number(2, 5))]
    return title, "\n".join([title, "(in thousands of dollars)", "", *body, "", *notes])


def loan(w):
    principal, rate, months = w.number(5, 80) * 1000, w.number(25, 95) / 10, w.number(6, 18)
    monthly = rate / 1200
    payment = principal * monthly / (1 - (1 + monthly) ** -months)
    title = f"Amortization of a loan of ${principal:,} at {rate} percent over {months} months"
    lines = [title, "", f"{'Month':>5}{'Payment':>12}{'Interest':>12}{'Principal':>12}{'Balance':>14}"]
    balance = float(principal)
    for month in range(1, months + 1):
        interest = balance * monthly
        balance -= payment - interest
        lines.append(f"{month:>5}{payment:>12,.2f}{interest:>12,.2f}{payment - interest:>12,.2f}{max(balance, 0):>14,.2f}")
    lines += ["", f"The borrower pays ${payment * months - principal:,.2f} of interest in all."]
    return title, "\n".join(lines)


def note(w):
    name = w.expand("{issuer=company}")
    rating = w.even(("Buy", "Hold", "Sell"))
    strengths = join_list(w.expand("{good}") for _ in range(2))
    title = w.expand(f"{name}: we rate the shares {rating} with a target of {{price}}")
    body = [
        title, "", f"We base our view of {name} on {strengths}. " + w.expand("The main risk is {bad}."),
        w.expand(f"{name} trades at {w.number(6, 35)}.{w.number(0, 9)} times earnings, while its peers {{company}} and "
                 f"{{company}} trade at {w.number(6, 35)}.{w.number(0, 9)} and {w.number(6, 35)}.{w.number(0, 9)} times."),
        w.paragraph("outlook", 1, 3), w.paragraph("market_sentence", 1, 3),
    ]  # fmt: skip
    return title, "\n".join(body)


def write_document(w):
    return w.pick((report, market, note, balance_sheet, loan))(w)
