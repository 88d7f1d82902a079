"""The vocabulary of the tiny pair's world: people, things, and two facts about each of 32 nouns."""

PEOPLE = ("Tom", "Ann", "Ben", "Eva", "Sam", "Mia", "Leo", "Zoe", "Max", "Amy", "Dan", "Kim")
THINGS = ("pens", "apples", "books", "coins", "cups", "cards", "shells", "stamps", "eggs", "keys", "balls", "hats")
EXTRA_WORDS = (
    "boat", "kite", "lamp", "drum", "rope", "cake", "moon", "star", "tree", "door", "song", "rain", "snow", "wind",
    "fire", "sand", "milk", "bread", "chair", "table", "clock", "train", "paper", "stone", "glass", "river",
    "bridge", "window", "garden", "summer", "winter", "yellow", "market", "music", "ladder", "basket",
)
FACTS = {
    "fox": ("red", "forest"), "bear": ("brown", "cave"), "frog": ("green", "pond"), "crow": ("black", "tower"),
    "swan": ("white", "lake"), "mouse": ("gray", "barn"), "whale": ("blue", "sea"), "lion": ("golden", "desert"),
    "pig": ("pink", "farm"), "goat": ("white", "hills"), "crab": ("orange", "harbor"), "snake": ("green", "jungle"),
    "owl": ("brown", "oak"), "wolf": ("gray", "valley"), "bee": ("golden", "meadow"), "ant": ("black", "nest"),
    "duck": ("white", "pond"), "horse": ("black", "stable"), "sheep": ("white", "meadow"),
    "tiger": ("orange", "jungle"), "camel": ("brown", "desert"), "seal": ("gray", "sea"), "robin": ("red", "hedge"),
    "parrot": ("blue", "jungle"),
    "deer": ("brown", "forest"), "bat": ("black", "cave"), "cow": ("brown", "farm"), "eagle": ("golden", "hills"),
    "turtle": ("green", "lake"), "hen": ("red", "barn"), "lizard": ("pink", "rocks"), "spider": ("black", "cellar"),
}
