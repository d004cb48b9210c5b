"""Stories, recipes, instructions, letters, travel notes and questions with answers."""

from .grammar import join_list
from .words import SHARED, WOMEN

RULES = SHARED | {
    "adj": ["old", "small", "quiet", "long", "dark", "bright", "cold", "narrow", "heavy", "strange", "warm", "empty", "blue",
            "broken", "wooden", "green", "distant", "silver", "careful", "wet", "yellow", "crooked", "gentle", "dusty",
            "hollow", "patient", "restless", "faded"],
    "thing": ["lamp", "letter", "map", "boat", "key", "coat", "clock", "box", "bell", "bicycle", "violin", "kite", "basket",
              "ladder", "umbrella", "mirror", "teapot", "suitcase", "ring", "photograph", "blanket", "compass", "whistle",
              "candle", "notebook", "telescope"],
    "animal": ["dog", "cat", "horse", "crow", "fox", "goat", "heron", "rabbit", "donkey", "owl", "hen", "badger", "goose"],
    "place": ["house", "garden", "river", "harbor", "station", "kitchen", "market", "forest", "bridge", "school", "hill",
              "library", "mill", "orchard", "lighthouse", "barn", "church", "bakery", "beach", "attic", "valley"],
    "job": ["baker", "sailor", "teacher", "carpenter", "doctor", "postman", "gardener", "clerk", "painter", "tailor",
            "fisherman", "widow", "miller", "musician", "nurse", "shepherd", "clockmaker"],
    "weather": ["It was raining.", "The sun had not yet risen.", "Snow lay on the {place}.", "A {adj} wind came from the {place}.",
                "The morning was {adj} and clear.", "Fog hung over the {place}.", "The evening was warm.",
                "It was the last {weekday} of {month}."],
    "went": ["walked to", "ran to", "came back to", "turned toward", "looked at", "waited near", "set out for", "drove past"],
    "took": ["took", "found", "hid", "carried", "bought", "sold", "dropped", "mended", "remembered", "opened", "painted",
             "lost", "kept"],
    "felt": ["felt tired", "smiled", "said nothing", "laughed", "was afraid", "began to sing", "sat down", "shook {his} head",
             "wept a little", "fell asleep", "was glad of it", "closed {his} eyes", "thought of {friend}"],
    "object": ["the {thing}", "a {adj} {thing}", "the {adj} {thing}", "{his} {thing}", "the {thing} from the {place}",
               "a {thing} that {friend} had left behind", "the {animal}'s {thing}"],
    "time": ["In the morning", "That night", "After {few} days", "At noon", "Before long", "Later", "When the bell rang",
             "The next {weekday}", "For a while", "Once", "At last"],
    "story_sentence": [
        "{hero} {went} the {place}.", "{he} {took} {object}.", "{time} {hero} {took} {object}.", "{^he} {felt}.",
        "{time} {he} {went} the {adj} {place}, and {he} {felt}.", "{weather}", "The {animal} {went} the {place}.",
        "\"{speech}\" said {hero}.", "\"{asking}\" asked {friend}.", "\"{speech}\" said the {job}.",
        "{friend} {took} {object} and {felt}.", "{hero} and {friend} {went} the {place} together.",
        "There was {object} beside the {place}.", "{^he} had never seen such a {adj} {thing}.",
        "Nobody in {town} knew where the {job} had gone.", "The {place} was {adj}, and the {place} was {adj}."],
    "asking": ["Where is the {thing}?", "Did you hear the {animal}?", "Who left this {thing} here?"],
    "speech": ["I have lost my {thing},", "Come with me to the {place},", "You must not tell {friend},",
               "It is only a {animal},", "We will need a {thing},", "I am not afraid of the {place},",
               "Take the {thing} and go,", "My father was a {job},", "Wait for me,"],
    "ending": ["And that is how the {thing} came back to {town}.", "{hero} never spoke of the {place} again.",
               "From that day on the {animal} followed {friend} everywhere.", "In the end, the {thing} was only a {thing}.",
               "{hero} went home, and the {place} was quiet again."],
    "food": ["flour", "butter", "sugar", "onions", "carrots", "rice", "tomatoes", "garlic", "milk", "cheese", "potatoes",
             "lentils", "apples", "honey", "cream", "mushrooms", "chicken", "beans", "lemon juice", "walnuts", "leeks", "barley"],
    "spice": ["salt", "black pepper", "cinnamon", "thyme", "nutmeg", "paprika", "rosemary", "cumin", "ginger", "parsley"],
    "dish": ["soup", "pie", "stew", "salad", "bread", "cake", "casserole", "pudding", "curry", "tart", "dumplings"],
    "pan": ["a large pot", "a heavy pan", "a mixing bowl", "an oven dish", "a saucepan", "a baking tray"],
    "minutes": lambda w: f"{5 * w.number(1, 12)} minutes",
    "measure": ["{few} cups of", "{few} tablespoons of", "a pinch of", "{few} ounces of", "half a pound of", "a handful of"],
    "chore": ["fix a dripping tap", "sharpen a knife", "plant tomatoes", "paint a door", "change a bicycle tire", "clean a {thing}",
              "write a letter of complaint", "repair a {thing}", "build a shelf", "train a {animal}", "store {food} for the winter",
              "wash a wool {thing}"],
    "tool": ["screwdriver", "bucket", "brush", "wrench", "ladder", "sheet of sandpaper", "rope", "spade", "needle", "clean cloth",
             "hammer", "tape measure"],
    "do": ["Turn off the water.", "Measure the {thing} {few} times before you cut.", "Loosen the screw with a {tool}.",
           "Let it dry for {minutes}.", "Wipe the surface with a {tool}.", "Ask a friend to hold the {tool}.",
           "Check that nothing leaks.", "Mark the place with a pencil.", "Put the {tool} away.", "Apply a thin coat of oil.",
           "Rinse it with cold water.", "Wait until it is {adj} before you go on.", "If it is {adj}, start again with a new {tool}."],
    "fact": ["a {animal} can live for {many} years", "the {place} was built in {year}", "most {job}s own a {thing}",
             "{food} keeps for {few} weeks in a {adj} room", "a {thing} should be cleaned every {weekday}",
             "{town} has {many} bridges and one {place}", "you need a {tool} for that"],
    "see": ["The road from {town} to {town} follows the river for {many} miles.", "Visitors come for the {adj} {place} and stay "
            "for the {dish}.", "The {place} is open from {month} to {month}.", "There is a {adj} inn beside the {place}, kept by a "
            "{job} named {last}.", "Trains leave for {town} every {few} hours.", "In {year} a flood carried away the {adj} {place}.",
            "Take a {thing} with you, for the {place} is {adj}.", "On {weekday}s the {job}s sell {food} and {food} at the market.",
            "From the {place} one sees as far as {town}."],
}  # fmt: skip


def people(w):
    """Sets the hero, a friend and the pronouns for a document."""
    hero, friend = w.several(RULES["first"], 2)
    he, his = ("she", "her") if hero in WOMEN else ("he", "his")
    w.remembered.update(hero=hero, friend=friend, he=he, his=his)


def sentence_case(text):
    out, start = [], True
    for word in text.split(" "):
        out.append(word[:1].upper() + word[1:] if start else word)
        start = word.endswith((".", "\n"))
    return " ".join(out)


def story(w):
    people(w)
    title = w.expand("The {adj} {thing}").title()
    opening = w.expand("{hero} was a {job} who lived near the {place} in {town}. {weather}")
    paragraphs = [sentence_case(w.paragraph("story_sentence", 3, 7)) for _ in range(w.number(3, 7))]
    return title, "\n\n".join([title, opening, *paragraphs, w.expand("{ending}")])


def recipe(w):
    main = w.several(RULES["food"], w.number(3, 6))
    spices = w.several(RULES["spice"], 2)
    dish = w.pick(RULES["dish"])
    title = f"{main[0].capitalize()} {dish} with {main[1]}"
    lines = [title, "", f"Serves {w.number(2, 8)}.", "", "Ingredients:"]
    lines += [w.expand("- {measure} ") + item for item in main] + [f"- {spice}" for spice in spices]
    steps = [f"Chop the {main[0]} and put it into {w.pick(RULES['pan'])}.",
             f"Add the {main[1]} and cook for {w.rule('minutes')}, stirring often.",
             f"Season with {join_list(spices)}.",
             *(w.even((f"Stir in the {item}.", f"Mix the {item} with a little water and pour it over the {main[0]}.",
                       f"Cover with the {item} and wait for {w.rule('minutes')}.")) for item in main[2:]),
             f"Bake the {dish} for {w.rule('minutes')} until it is golden." if dish in ("pie", "cake", "bread", "tart")
             else f"Let the {dish} simmer for {w.rule('minutes')}.",
             f"Serve warm with {w.pick(RULES['food'])}."]  # fmt: skip
    lines += ["", "Method:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))]
    return title, "\n".join(lines)


def how_to(w):
    title = w.expand("How to {chore}")
    tools = w.several(RULES["tool"], w.number(2, 3))
    lines = [title, "", w.expand("You need ") + join_list("a " + tool for tool in tools) + w.expand(". Allow {minutes}."), ""]
    lines += [f"Step {n}. " + w.expand("{do}") for n in range(1, w.number(4, 9))]
    lines += ["", w.expand("Note that {fact}.")]
    return title, "\n".join(lines)


def letter(w):
    people(w)
    lines = [w.expand("{town}, {date}"), "", w.expand("Dear {friend},"), "",
             w.expand("Thank you for the {thing}. {weather} I {went} the {place} yesterday and thought of you."),
             sentence_case(w.paragraph("story_sentence", 2, 5)),
             w.expand("Do you remember the {job} in {town}? They say that {fact}."), "",
             w.expand("Yours, {hero}")]  # fmt: skip
    return "Letter", "\n".join(lines)


def travel(w):
    title = w.expand("A visit to {town}")
    return title, "\n\n".join([title, *(w.paragraph("see", 3, 5) for _ in range(w.number(2, 4)))])


def answers(w):
    lines = []
    for _ in range(w.number(3, 7)):
        lines += [w.expand("Q: {question}"), w.expand("A: {answer}"), ""]
    return "Questions", "\n".join(lines).rstrip()


RULES["question"] = ["How do I {chore}?", "Is it true that {fact}?", "What can one see in {town}?", "Why is my {thing} {adj}?",
                     "How long does {food} keep?"]  # fmt: skip
RULES["answer"] = ["{do} {do}", "Yes, {fact}.", "No, but {fact}.", "{see}", "{do} Remember that {fact}."]


def write_document(w):
    return w.pick((story, recipe, how_to, letter, travel, answers))(w)
