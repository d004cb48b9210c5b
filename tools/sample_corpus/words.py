"""Rules that every domain shares: people, places, companies, dates, amounts."""

WOMEN = """Anna Clara Ruth Nora Julia Alice Elena Grace Irene Sofia Marta Lucy Paula Rosa Ida Helen Miriam Edith Vera
Lena Agnes Dora Esther Olga Judith""".split()
MEN = """Tom Henry Samuel Peter Martin Oscar David Felix Walter Daniel Hugo Edwin Victor Simon George Adam Leo Frank
Arthur Jonas Philip Carl Ralph Theo Max""".split()
FIRST_NAMES = [name for pair in zip(WOMEN, MEN) for name in pair]
LAST_NAMES = """Hale Morris Keller Brandt Whitlow Ashby Carver Nolan Pruitt Lindqvist Marsh Okafor Reyes Tanner Voss
Winslow Abbott Calder Dunmore Ellery Farrow Garrick Holloway Ingram Jarvis Kestrel Lockwood Mercer Norwood Orwin
Penrose Quill Radley Sable Thorne Underhill Vance Weaver Yardley Zimmer Bexley Corwin Drake Eastman Fenwick""".split()
TOWN_STARTS = "Ash Bram Clay Dun East Fair Glen Har Kings Lang Mill North Oak Pem Raven Stone Thorn West Win Wood".split()
TOWN_ENDS = "ford ton ham bury field mouth wick dale port haven bridge worth mere stead".split()
COMPANY_STARTS = """Alder Beacon Cobalt Delta Ember Falcon Granite Harbor Ironwood Juniper Keystone Lantern Meridian
Northgate Orchard Pinnacle Quarry Redwood Summit Tidewater Union Vantage Westbrook Yellowstone Zenith Bluefin Corvid
Drummond Everline Foxglove""".split()
COMPANY_MIDDLES = """Energy Logistics Foods Systems Materials Financial Retail Health Instruments Shipping Software
Packaging Airlines Textiles Mining Pharmaceuticals Semiconductors Insurance Media Utilities""".split()
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def town(w):
    return w.pick(TOWN_STARTS) + w.pick(TOWN_ENDS)


def company(w):
    return f"{w.pick(COMPANY_STARTS)} {w.pick(COMPANY_MIDDLES)}"


def person(w):
    return f"{w.pick(FIRST_NAMES)} {w.pick(LAST_NAMES)}"


def date(w):
    return f"{w.pick(MONTHS)} {w.number(1, 28)}, {w.number(1994, 2023)}"


SHARED = {
    "first": FIRST_NAMES,
    "last": LAST_NAMES,
    "person": person,
    "town": town,
    "company": company,
    "date": date,
    "month": MONTHS,
    "weekday": WEEKDAYS,
    "year": lambda w: str(w.number(1994, 2023)),
    "few": lambda w: NUMBER_WORDS[w.number(2, 6)],
    "many": lambda w: NUMBER_WORDS[w.number(5, 12)],
}
