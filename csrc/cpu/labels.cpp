#include "cpu/labels.h"

#include <algorithm>
#include <numeric>

#include "cpu/ideas.h"

namespace pairloss::cpu {
namespace {

// Rows begin .. end - 1, sorted by several keys, the last of which counts most: a radix sort whose
// digits are as many keys as together have few values.
class RadixSort {
 public:
  RadixSort(int64_t begin, int64_t end) : begin_(begin), digit_(end - begin), order_(end - begin) {
    std::iota(order_.begin(), order_.end(), int32_t{0});
  }

  // key(row): 0 .. range - 1.
  template <class Key>
  void by(int64_t range, Key&& key) {
    constexpr int64_t kFewValues = 2048;
    if (range_ > 1 && range_ * range > kFewValues) sort_by_digit();
    for (size_t i = 0; i < digit_.size(); ++i) {
      digit_[i] += static_cast<int32_t>(range_ * key(begin_ + static_cast<int64_t>(i)));
    }
    range_ *= range;
  }

  // The rows in order, counted from the first.
  std::vector<int32_t> order() {
    sort_by_digit();
    return std::move(order_);
  }

 private:
  // A stable counting sort.
  void sort_by_digit() {
    if (range_ == 1) return;
    std::vector<int32_t> place(range_ + 1), sorted(order_.size());
    for (int32_t digit : digit_) ++place[digit + 1];
    std::partial_sum(place.begin(), place.end(), place.begin());
    for (int32_t i : order_) sorted[place[digit_[i]]++] = i;
    order_.swap(sorted);
    std::fill(digit_.begin(), digit_.end(), 0);
    range_ = 1;
  }

  int64_t begin_, range_ = 1;
  std::vector<int32_t> digit_, order_;
};

// Ids in the order of the labels, where they span a small range: no label is compared.
void number_by_table(const std::vector<int64_t>& labels, int64_t ignore_index, int64_t low,
                     int64_t range, Level& level) {
  std::vector<int32_t> id(range, -1);
  for (int64_t label : labels) {
    if (label != ignore_index) id[label - low] = 0;
  }
  for (int32_t& i : id) {
    if (i == 0) i = level.classes++;
  }
  for (size_t i = 0; i < labels.size(); ++i) {
    level.id[i] = labels[i] == ignore_index ? -1 : id[labels[i] - low];
  }
}

void number_by_search(const std::vector<int64_t>& labels, int64_t ignore_index, Level& level) {
  std::vector<int64_t> sorted;
  std::copy_if(labels.begin(), labels.end(), std::back_inserter(sorted),
               [&](int64_t label) { return label != ignore_index; });
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  level.classes = static_cast<int32_t>(sorted.size());
  for (size_t i = 0; i < labels.size(); ++i) {
    level.id[i] =
        labels[i] == ignore_index
            ? -1
            : static_cast<int32_t>(std::lower_bound(sorted.begin(), sorted.end(), labels[i]) -
                                   sorted.begin());
  }
}

void count_pairs(int64_t n, bool cross, Level& level) {
  // Of each class, and of all: in the batch, in the reference set.
  std::vector<int64_t> rows(2 * level.classes);
  int64_t all[2] = {0, 0};
  for (size_t i = 0; i < level.id.size(); ++i) {
    if (level.id[i] >= 0) ++rows[2 * level.id[i] + (static_cast<int64_t>(i) >= n)];
  }
  const auto count = [cross](int64_t batch_rows, int64_t reference_rows) {
    const auto batch = static_cast<double>(batch_rows);
    return cross ? batch * static_cast<double>(reference_rows) : batch * (batch - 1.0) / 2.0;
  };
  for (size_t c = 0; c < rows.size(); c += 2) {
    level.similar_pairs += count(rows[c], rows[c + 1]);
    all[0] += rows[c], all[1] += rows[c + 1];
  }
  const double pairs = count(all[0], all[1]);
  level.dissimilar_pairs = pairs - level.similar_pairs;
  if (pairs == 0.0) std::fill(level.id.begin(), level.id.end(), -1);
}

}  // namespace

Level make_level(const int64_t* labels, int64_t n, const int64_t* ref_labels, int64_t m, bool cross,
                 int64_t stride, int64_t ignore_index) {
  std::vector<int64_t> all(n + m);
  for (int64_t i = 0; i < n; ++i) all[i] = labels[i * stride];
  for (int64_t i = 0; i < m; ++i) all[n + i] = ref_labels[i * stride];
  Level level;
  level.id.resize(n + m);
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (int64_t label : all) {
    if (label == ignore_index) continue;
    low = std::min(low, label);
    high = std::max(high, label);
  }
  // Unsigned: the distance of two int64 labels may not fit into an int64.
  const uint64_t range = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
  if (low > high) {
    std::fill(level.id.begin(), level.id.end(), -1);
  } else if (range < 4 * all.size() + 1024) {
    number_by_table(all, ignore_index, low, static_cast<int64_t>(range) + 1, level);
  } else {
    number_by_search(all, ignore_index, level);
  }
  count_pairs(n, cross, level);
  return level;
}

Arrangement::Arrangement(const Level* levels, int64_t level_count, int64_t n, int64_t m,
                         const Likeness* likeness, int64_t columns, int64_t alignment) {
  for (int64_t side = 0; side < 2; ++side) {
    arrange(levels, level_count, side, n, m, likeness, columns, alignment);
  }
  for (int64_t g = 0; g < level_count; ++g) {
    for (int64_t side = 0; side < 2; ++side) members_.push_back(find_members(levels[g], side));
  }
}

Arrangement::~Arrangement() = default;

void Arrangement::arrange(const Level* levels, int64_t level_count, int64_t side, int64_t n,
                          int64_t m, const Likeness* likeness, int64_t columns, int64_t alignment) {
  begin_[side] = end_[side] = static_cast<int64_t>(row_.size());
  const int64_t first = side == 0 ? 0 : n, last = side == 0 ? n : n + m;
  const auto takes_part = [&](int64_t i) {
    bool any = false;
    for (int64_t g = 0; g < level_count; ++g) any |= levels[g].id[i] >= 0;
    return any;
  };
  int64_t some = first;
  while (some < last && !takes_part(some)) ++some;
  if (some == last) return;
  RadixSort sort(first, last);
  if (likeness != nullptr) {
    sort.by(256, [&](int64_t i) { return likeness[i].confidence; });
    sort.by(columns, [&](int64_t i) { return likeness[i].largest; });
  }
  std::vector<const Level*> coarsest_last;
  for (int64_t g = 0; uses<Idea::class_order> && g < level_count; ++g) {
    coarsest_last.push_back(levels + g);
  }
  if (level_count > 1) {
    std::stable_sort(coarsest_last.begin(), coarsest_last.end(),
                     [](const Level* a, const Level* b) { return a->classes > b->classes; });
  }
  for (const Level* level : coarsest_last) {
    sort.by(level->classes + 1, [&](int64_t i) { return level->id[i] + 1; });
  }
  const std::vector<int32_t> order = sort.order();
  if (side == 1) {
    row_.resize((row_.size() + alignment - 1) / alignment * alignment, -1);
  }
  begin_[side] = static_cast<int64_t>(row_.size());
  end_[side] = begin_[side];
  row_.resize(begin_[side] + order.size());
  for (int32_t i : order) {
    row_[end_[side]] = first + i;
    end_[side] += takes_part(first + i);
  }
  row_.resize(end_[side]);
}

Arrangement::Members Arrangement::find_members(const Level& level, int64_t side) const {
  Members members;
  auto& begin = members.begin;
  begin.assign(level.classes + 2, 0);
  // Rows of one class that stand together, at once: to count them one by one waits for each count.
  const auto for_each_run = [&](auto&& body) {
    for (int64_t p = begin_[side], run = p; run < end_[side]; run = p) {
      const int32_t id = level.id[row_[run]];
      while (p < end_[side] && level.id[row_[p]] == id) ++p;
      if (id >= 0) body(static_cast<int32_t>(run), static_cast<int32_t>(p), id);
    }
  };
  // First the rows of class c at c + 2, then the first place of it at c + 1, which ends up behind
  // its last, the first of class c + 1.
  for_each_run([&](int32_t first, int32_t last, int32_t id) { begin[id + 2] += last - first; });
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  members.position.resize(begin.back());
  for_each_run([&](int32_t first, int32_t last, int32_t id) {
    int32_t* const to = members.position.data() + begin[id + 1];
    std::iota(to, to + (last - first), first);
    begin[id + 1] += last - first;
  });
  return members;
}

const int64_t* Arrangement::row() const { return row_.data(); }

const int32_t* Arrangement::members(int64_t level, int64_t side) const {
  return members_[2 * level + side].begin.data();
}

const int32_t* Arrangement::member_positions(int64_t level, int64_t side) const {
  return members_[2 * level + side].position.data();
}

}  // namespace pairloss::cpu
