#include <oniguruma.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/unicode.h"

namespace switchyard::tokenizer {

namespace {

// Code points that properties have in Oniguruma 6.9.10 and not in 6.9.8, asked of both for every code point and
// property but blocks; "-name": the other way round.
constexpr struct {
  const char* properties;
  const char* codes;
} kChanges[] = {
    {"changeswhencasemapped changeswhentitlecased changeswhenuppercased", "19b,264"},
    {"alnum alpha alphabetic oalpha", "363-36f,c04,f82-f83,1dd3-1de6,11080-11081"},
    {"-term", "836"},
    {"alnum alpha alphabetic arab assigned caseignorable combiningmark graph graphemeextend idc mn "
     "oalpha print word xidc -c -cn -unknown",
     "897,10efc"},
    {"ext", "a71,afb,11237"},
    {"graphemeextend ogrext -graphemebase",
     "cc0,cc7-cc8,cca-ccb,1715,1b3b,1b3d,1b43-1b44,1baa,a953,a9c0,111c0,11235,1134d,116b6,1193d,"
     "16ff0-16ff1,1d166,1d16d"},
    {"alnum alpha alphabetic assigned combiningmark graph graphemebase idc kannada mc oalpha print "
     "word xidc -c -cn -unknown",
     "cf3"},
    {"dia", "e3a,1a60,1be6,a806,a82c,10a38-10a3a,10a3f,1133b"},
    {"assigned caseignorable combiningmark graph graphemeextend idc lao mn print word xidc -c -cn "
     "-unknown",
     "ece"},
    {"cased lower lowercase olower", "10fc,a7f2-a7f4,ab69"},
    {"dia graphemeextend ogrext -graphemebase", "1734,1bf2-1bf3"},
    {"sentenceterminal", "17d4-17d5"},
    {"assigned bali graph graphemebase otherpunctuation p print punct sentenceterminal term -c -cn "
     "-unknown",
     "1b4e-1b4f,1b7f"},
    {"alnum alpha alphabetic assigned cased casedletter changeswhencasefolded "
     "changeswhencasemapped changeswhenlowercased cyrillic graph graphemebase idc ids l lu print "
     "upper uppercase word xidc xids -c -cn -unknown",
     "1c89"},
    {"alnum alpha alphabetic assigned cased casedletter changeswhencasemapped "
     "changeswhentitlecased changeswhenuppercased cyrillic graph graphemebase idc ids l ll lower "
     "lowercase print word xidc xids -c -cn -unknown",
     "1c8a"},
    {"idc oidc xidc", "200c-200d,30fb,ff65"},
    {"sentenceterminal term", "2024,2cf9-2cfb,fe12,fe15-fe16"},
    {"assigned common graph graphemebase othersymbol print s -c -cn -unknown",
     "2427-2429,2ffe-2fff,31e4-31e5,1cc00-1ccef,1cd00-1ceb3,1f774-1f776,1f77b-1f77f,1f7d9,"
     "1f8b2-1f8bb,1f8c0-1f8c1,1fbcb-1fbef"},
    {"assigned common graph graphemebase idsb othersymbol print s -c -cn -unknown", "2ffc-2ffd,31ef"},
    {"alnum alpha alphabetic assigned cased casedletter changeswhencasefolded "
     "changeswhencasemapped changeswhenlowercased graph graphemebase idc ids l latin lu print "
     "upper uppercase word xidc xids -c -cn -unknown",
     "a7cb-a7cc,a7da,a7dc"},
    {"alnum alpha alphabetic assigned cased casedletter changeswhencasemapped "
     "changeswhentitlecased changeswhenuppercased graph graphemebase idc ids l latin ll lower "
     "lowercase print word xidc xids -c -cn -unknown",
     "a7cd,a7db"},
    {"alnum alpha alphabetic assigned graph graphemebase idc ids l lo print word xidc xids -c -cn "
     "-unknown",
     "105c0-105f3,10d4a-10d4d,10d4f,11380-11389,1138b,1138e,11390-113b5,113b7,113d1,11bc0-11be0,"
     "11f02,11f04-11f10,11f12-11f33,16100-1611d,16d43-16d6a,1e4d0-1e4ea,1e5d0-1e5ed,1e5f0"},
    {"alnum assigned decimalnumber digit graph graphemebase idc n print word xidc -c -cn -unknown",
     "10d40-10d49,11bf0-11bf9,11f50-11f59,16130-16139,16d70-16d79,1e4f0-1e4f9,1e5f1-1e5fa"},
    {"alnum alpha alphabetic assigned caseignorable dia ext graph graphemebase idc ids l lm print "
     "word xidc xids -c -cn -unknown",
     "10d4e"},
    {"alnum alpha alphabetic assigned cased casedletter changeswhencasefolded "
     "changeswhencasemapped changeswhenlowercased graph graphemebase idc ids l lu print upper "
     "uppercase word xidc xids -c -cn -unknown",
     "10d50-10d65"},
    {"alnum alpha alphabetic assigned caseignorable combiningmark dia graph graphemeextend idc mn "
     "oalpha print word xidc -c -cn -unknown",
     "10d69"},
    {"assigned caseignorable combiningmark dia ext graph graphemeextend idc mn print word xidc -c "
     "-cn -unknown",
     "10d6a,113d2,1e5ef"},
    {"assigned caseignorable combiningmark dia graph graphemeextend idc mn print word xidc -c -cn "
     "-unknown",
     "10d6b-10d6d,113e1-113e2,11f5a,1e5ee"},
    {"assigned dash dashpunctuation graph graphemebase p print punct -c -cn -unknown", "10d6e"},
    {"alnum alpha alphabetic assigned caseignorable ext graph graphemebase idc ids l lm print word "
     "xidc xids -c -cn -unknown",
     "10d6f"},
    {"alnum alpha alphabetic assigned cased casedletter changeswhencasemapped "
     "changeswhentitlecased changeswhenuppercased graph graphemebase idc ids l ll lower lowercase "
     "print word xidc xids -c -cn -unknown",
     "10d70-10d85"},
    {"assigned graph graphemebase math mathsymbol print s -c -cn -unknown", "10d8e-10d8f"},
    {"alnum alpha alphabetic arab assigned graph graphemebase idc ids l lo print word xidc xids -c "
     "-cn -unknown",
     "10ec2-10ec4"},
    {"arab assigned caseignorable combiningmark dia graph graphemeextend idc mn print word xidc -c "
     "-cn -unknown",
     "10efd-10eff"},
    {"alnum alpha alphabetic assigned graph graphemebase idc ids khoj l lo print word xidc xids -c "
     "-cn -unknown",
     "1123f-11240"},
    {"alnum alpha alphabetic assigned caseignorable combiningmark graph graphemeextend idc khoj mn "
     "oalpha print word xidc -c -cn -unknown",
     "11241"},
    {"alnum alpha alphabetic assigned combiningmark graph graphemeextend idc mc oalpha ogrext "
     "print word xidc -c -cn -unknown",
     "113b8,113c2,113c5,113c7-113c9"},
    {"alnum alpha alphabetic assigned combiningmark graph graphemebase idc mc oalpha print word "
     "xidc -c -cn -unknown",
     "113b9-113ba,113ca,113cc-113cd,11f03,11f34-11f35,11f3e-11f3f,1612a-1612c"},
    {"alnum alpha alphabetic assigned caseignorable combiningmark graph graphemeextend idc mn "
     "oalpha print word xidc -c -cn -unknown",
     "113bb-113c0,11f00-11f01,11f36-11f3a,11f40,1611e-16129,1612d-1612e"},
    {"assigned caseignorable combiningmark dia graph graphemeextend graphemelink idc mn print word "
     "xidc -c -cn -unknown",
     "113ce,113d0,11f42,1612f"},
    {"assigned combiningmark dia graph graphemeextend graphemelink idc mc ogrext print word xidc "
     "-c -cn -unknown",
     "113cf,11f41"},
    {"alnum alpha alphabetic assigned dia ext graph graphemebase idc ids l lo print word xidc xids "
     "-c -cn -unknown",
     "113d3"},
    {"assigned graph graphemebase otherpunctuation p print punct sentenceterminal term -c -cn "
     "-unknown",
     "113d4-113d5,11f43-11f44,16d6e-16d6f"},
    {"assigned graph graphemebase otherpunctuation p print punct -c -cn -unknown",
     "113d7-113d8,11be1,11f45-11f4f,16d6d,1e5ff"},
    {"alnum assigned decimalnumber digit graph graphemebase idc myanmar n print word xidc -c -cn "
     "-unknown",
     "116d0-116e3"},
    {"graphemebase mc -caseignorable -graphemeextend -mn", "1171e"},
    {"assigned deva graph graphemebase otherpunctuation p print punct -c -cn -unknown", "11b00-11b09"},
    {"alnum alpha alphabetic assigned egyp graph graphemebase idc ids l lo print word xidc xids -c "
     "-cn -unknown",
     "1342f,13441-13446,13460-143fa"},
    {"assigned caseignorable cf egyp graph print -cn -unknown", "13439-1343f"},
    {"assigned caseignorable combiningmark egyp graph graphemeextend idc mn print word xidc -c -cn "
     "-unknown",
     "13440"},
    {"assigned caseignorable combiningmark dia egyp graph graphemeextend idc mn print word xidc -c "
     "-cn -unknown",
     "13447-13455"},
    {"alnum alpha alphabetic assigned caseignorable graph graphemebase idc ids l lm print word "
     "xidc xids -c -cn -unknown",
     "16d40-16d42,1e4eb"},
    {"alnum alpha alphabetic assigned caseignorable dia graph graphemebase idc ids l lm print word "
     "xidc xids -c -cn -unknown",
     "16d6b-16d6c"},
    {"alnum alpha alphabetic assigned graph graphemebase idc ideo ids khitansmallscript l lo print "
     "word xidc xids -c -cn -unknown",
     "18cff"},
    {"alnum alpha alphabetic assigned graph graphemebase hira idc ids l lo print word xidc xids -c "
     "-cn -unknown",
     "1b132"},
    {"alnum alpha alphabetic assigned graph graphemebase idc ids kana l lo print word xidc xids -c "
     "-cn -unknown",
     "1b155"},
    {"alnum assigned common decimalnumber digit graph graphemebase idc n print word xidc -c -cn "
     "-unknown",
     "1ccf0-1ccf9"},
    {"assigned common graph graphemebase n no print -c -cn -unknown", "1d2c0-1d2d3"},
    {"alnum alpha alphabetic assigned cased casedletter graph graphemebase idc ids l latin ll "
     "lower lowercase print word xidc xids -c -cn -unknown",
     "1df25-1df2a"},
    {"alnum alpha alphabetic assigned cased caseignorable cyrillic dia graph graphemebase idc ids "
     "l lm lower lowercase olower print word xidc xids -c -cn -unknown",
     "1e030-1e04b,1e04e-1e067,1e069-1e06d"},
    {"alnum alpha alphabetic assigned cased caseignorable cyrillic dia graph graphemebase idc ids "
     "l lm lower lowercase olower print sd word xidc xids -c -cn -unknown",
     "1e04c-1e04d,1e068"},
    {"alnum alpha alphabetic assigned caseignorable combiningmark cyrillic graph graphemeextend "
     "idc mn oalpha print word xidc -c -cn -unknown",
     "1e08f"},
    {"assigned caseignorable combiningmark graph graphemeextend idc mn print word xidc -c -cn "
     "-unknown",
     "1e4ec-1e4ef"},
    {"assigned common emoji emojipresentation graph graphemebase othersymbol print s -c -cn "
     "-unknown",
     "1f6dc,1fa75-1fa77,1fa87-1fa89,1fa8f,1faad-1faaf,1fabb-1fabf,1fac6,1face-1facf,1fada-1fadc,"
     "1fadf,1fae8-1fae9"},
    {"assigned common ebase emoji emojipresentation graph graphemebase othersymbol print s -c -cn "
     "-unknown",
     "1faf7-1faf8"},
    {"alnum alpha alphabetic assigned graph graphemebase han idc ideo ids l lo print uideo word "
     "xidc xids -c -cn -unknown",
     "2b739,2ebf0-2ee5d,31350-323af"},
};

using Ranges = std::vector<std::pair<OnigCodePoint, OnigCodePoint>>;  // ascending, both ends belong to it

OnigEncoding base() { return ONIG_ENCODING_UTF8; }

int type_of(std::string_view property) {
  auto* begin = reinterpret_cast<OnigUChar*>(const_cast<char*>(property.data()));
  return base()->property_name_to_ctype(base(), begin, begin + property.size());
}

Ranges ranges_of(OnigCtype type) {
  OnigCodePoint single_byte = 0;
  const OnigCodePoint* codes = nullptr;
  Ranges ranges;
  if (base()->get_ctype_code_range(type, &single_byte, &codes) != 0) return ranges;
  for (OnigCodePoint i = 0; i < codes[0]; ++i) ranges.emplace_back(codes[1 + 2 * i], codes[2 + 2 * i]);
  return ranges;
}

Ranges united(Ranges ranges, const Ranges& more) {
  ranges.insert(ranges.end(), more.begin(), more.end());
  std::sort(ranges.begin(), ranges.end());
  Ranges out;
  for (const auto& range : ranges) {
    if (!out.empty() && range.first <= out.back().second + 1)
      out.back().second = std::max(out.back().second, range.second);
    else
      out.push_back(range);
  }
  return out;
}

Ranges without(const Ranges& ranges, const Ranges& less) {
  Ranges out;
  auto cut = less.begin();
  for (auto [first, last] : ranges) {
    while (cut != less.end() && cut->second < first) ++cut;
    for (auto at = cut; at != less.end() && at->first <= last; ++at) {
      if (first < at->first) out.emplace_back(first, at->first - 1);
      first = at->second + 1;
    }
    if (first <= last) out.emplace_back(first, last);
  }
  return out;
}

// The properties that change, in the form that Oniguruma takes: the number of ranges, then the ranges.
struct Properties {
  std::unordered_map<OnigCtype, std::vector<OnigCodePoint>> codes;

  Properties() {
    std::unordered_map<int, std::pair<Ranges, Ranges>> changes;  // more and less, by type
    for (const auto& [properties, codes_of_change] : kChanges) {
      const CodeSet set(codes_of_change);
      std::string_view names = properties;
      while (!names.empty()) {
        const std::string_view name = names.substr(0, names.find(' '));
        names.remove_prefix(std::min(names.size(), name.size() + 1));
        const bool less = name[0] == '-';
        const int type = type_of(name.substr(less));
        if (type < 0) continue;
        Ranges& ranges = less ? changes[type].second : changes[type].first;
        ranges.insert(ranges.end(), set.ranges().begin(), set.ranges().end());
      }
    }
    for (const auto& [type, change] : changes) {
      const auto number = static_cast<OnigCtype>(type);
      put(number, without(united(ranges_of(number), change.first), united({}, change.second)));
    }
    // [[:punct:]] holds symbols too.
    put(ONIGENC_CTYPE_PUNCT, united(get(type_of("p")), get(type_of("s"))));
  }

  void put(OnigCtype type, const Ranges& ranges) {
    std::vector<OnigCodePoint>& out = codes[type];
    out = {static_cast<OnigCodePoint>(ranges.size())};
    for (const auto& [first, last] : ranges) out.insert(out.end(), {first, last});
  }

  Ranges get(int type) const {
    const auto known = codes.find(static_cast<OnigCtype>(type));
    if (known == codes.end()) return ranges_of(static_cast<OnigCtype>(type));
    Ranges ranges;
    for (std::size_t i = 1; i < known->second.size(); i += 2)
      ranges.emplace_back(known->second[i], known->second[i + 1]);
    return ranges;
  }
};

const Properties& properties() {
  static const Properties instance;
  return instance;
}

// \p{Punct} is punctuation alone, unlike the bracket of that name.
int property_name_to_type(OnigEncoding, OnigUChar* begin, OnigUChar* end) {
  const int type = base()->property_name_to_ctype(base(), begin, end);
  return type == ONIGENC_CTYPE_PUNCT ? type_of("p") : type;
}

int is_of_type(OnigCodePoint code, OnigCtype type) {
  const auto known = properties().codes.find(type);
  if (code < 0x100 || known == properties().codes.end()) return base()->is_code_ctype(code, type);
  const std::vector<OnigCodePoint>& codes = known->second;
  // The first range that does not end before it.
  std::size_t low = 0, high = codes[0];
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    if (codes[2 + 2 * middle] < code)
      low = middle + 1;
    else
      high = middle;
  }
  return low < codes[0] && codes[1 + 2 * low] <= code;
}

int code_range(OnigCtype type, OnigCodePoint* single_byte, const OnigCodePoint* ranges[]) {
  const auto known = properties().codes.find(type);
  if (known == properties().codes.end()) return base()->get_ctype_code_range(type, single_byte, ranges);
  *single_byte = 0x80;
  *ranges = known->second.data();
  return 0;
}

}  // namespace

OnigEncoding expression_encoding() {
  static OnigEncodingType encoding = [] {
    OnigEncodingType changed = *base();
    changed.property_name_to_ctype = property_name_to_type;
    changed.is_code_ctype = is_of_type;
    changed.get_ctype_code_range = code_range;
    return changed;
  }();
  return &encoding;
}

}  // namespace switchyard::tokenizer
