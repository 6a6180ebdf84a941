#include "layout.h"

#include <string.h>

namespace srigl {
namespace {

// Adds up sections, noticing overflow.
class Cursor {
 public:
  size_t Add(int64_t count, size_t bytes) {
    const size_t begin = end_;
    size_t size;
    if (count < 0 || __builtin_mul_overflow(static_cast<size_t>(count), bytes, &size) ||
        size > (size_t{1} << 62) || __builtin_add_overflow(end_, size, &end_) ||
        end_ > (size_t{1} << 62)) {
      ok_ = false;
      end_ = 0;
      return 0;
    }
    end_ = (end_ + kSectionBytes - 1) / kSectionBytes * kSectionBytes;
    return begin;
  }
  size_t end() const { return end_; }
  bool ok() const { return ok_; }

 private:
  size_t end_ = 0;
  bool ok_ = true;
};

bool SaneHeader(const PatternHeader& header) {
  return header.in_features >= 0 && header.out_features >= 0 && header.num_active >= 0 &&
         header.num_active <= header.out_features && header.num_values >= 0 &&
         header.num_masks >= 0;
}

template <typename T>
const T* Section(const void* data, size_t begin) {
  return reinterpret_cast<const T*>(static_cast<const char*>(data) + begin);
}

// Checks what both patterns share, and reads the header (the buffer may be unaligned: refused, as
// the sections are read in place).
const char* ReadHeader(Bytes pattern, Bytes values, ValueType type, uint32_t magic,
                       PatternHeader* header) {
  if (pattern.size < sizeof(PatternHeader)) return "the pattern is shorter than its header";
  if (reinterpret_cast<uintptr_t>(pattern.data) % alignof(int64_t) != 0 ||
      reinterpret_cast<uintptr_t>(values.data) % ValueBytes(type) != 0) {
    return "the pattern or its values are not aligned";
  }
  memcpy(header, pattern.data, sizeof(PatternHeader));
  const bool is_pair = magic == kTileMagic && header->magic == kPairedTileMagic;
  if (header->magic != magic && !is_pair) {
    return "the pattern is of another kind or format version";
  }
  if (!SaneHeader(*header)) return "the pattern's header is out of range";
  if (static_cast<uint64_t>(header->num_values) > values.size / ValueBytes(type) ||
      values.size != static_cast<size_t>(header->num_values) * ValueBytes(type)) {
    return "the pattern and its values differ in size";
  }
  return nullptr;
}

// Whether groups cover packets (or steps), masks and outputs, in order.
bool GroupsFit(const PatternHeader& header, const WindowGroup* groups, int64_t num_groups,
               int64_t num_packets) {
  // All are looked at, and none is left early: small layers would take longer for that than for this.
  // Differences are of unsigned numbers, which may wrap around; what they tell counts only where every
  // number lies within its bounds.
  const auto beyond = [](int64_t number, int64_t most) {
    return static_cast<uint64_t>(number) > static_cast<uint64_t>(most);
  };
  bool wrong = false;
  for (int64_t g = 0; g <= num_groups; ++g) {
    wrong |= beyond(groups[g].packet_begin, num_packets);
    wrong |= beyond(groups[g].mask_begin, header.num_masks);
    wrong |= beyond(groups[g].output_begin, header.out_features);
  }
  for (int64_t g = 0; g < num_groups; ++g) {
    const WindowGroup &group = groups[g], &next = groups[g + 1];
    const uint64_t outputs =
        static_cast<uint64_t>(next.output_begin) - static_cast<uint64_t>(group.output_begin);
    const uint64_t masks =
        static_cast<uint64_t>(next.mask_begin) - static_cast<uint64_t>(group.mask_begin);
    wrong |= next.packet_begin < group.packet_begin;
    wrong |= next.output_begin < group.output_begin;
    wrong |= masks != (outputs + kGroupRows - 1) / kGroupRows;
  }
  if (wrong) return false;
  const WindowGroup &first = groups[0], &end = groups[num_groups];
  return first.packet_begin == 0 && first.mask_begin == 0 && first.output_begin == 0 &&
         end.packet_begin == num_packets && end.mask_begin == header.num_masks &&
         (num_groups == 0 || end.output_begin == header.out_features);
}

}  // namespace

bool TileLayout(const PatternHeader& header, TileSections* sections) {
  if (!SaneHeader(header) || header.block_columns < 1 ||
      header.block_columns > kMaxBlockColumns) {
    return false;
  }
  const int64_t blocks = CeilDiv(header.in_features, header.block_columns);
  const int64_t panels = CeilDiv(header.num_active, kPanelRows);
  int64_t tables;
  if (__builtin_mul_overflow(blocks, panels, &tables) || tables > (int64_t{1} << 50)) return false;
  Cursor cursor;
  cursor.Add(1, sizeof(PatternHeader));
  sections->starts = cursor.Add(tables + 1, sizeof(int64_t));
  sections->panel_outputs = cursor.Add(panels + 1, sizeof(int32_t));
  sections->rows = cursor.Add(tables * kPanelRows, sizeof(TileRow));
  sections->output_rows = cursor.Add(header.out_features, sizeof(int32_t));
  sections->columns = cursor.Add(header.num_values, 1);
  sections->total = cursor.end();
  return cursor.ok();
}

bool WindowLayout(const PatternHeader& header, WindowSections* sections) {
  if (!SaneHeader(header) || header.num_values % kPacketValues != 0 ||
      header.is_embedded < 0 || header.is_embedded > 1) {
    return false;
  }
  Cursor cursor;
  cursor.Add(1, sizeof(PatternHeader));
  sections->groups = cursor.Add(CeilDiv(header.num_active, kGroupRows) + 1, sizeof(WindowGroup));
  sections->paths = cursor.Add(header.num_values / kPacketValues, sizeof(WindowPath));
  sections->masks = cursor.Add(header.num_masks, sizeof(uint16_t));
  sections->columns = cursor.Add(header.is_embedded ? 0 : header.num_values, 1);
  sections->total = cursor.end();
  return cursor.ok();
}

bool DotLayout(const PatternHeader& header, DotSections* sections) {
  if (!SaneHeader(header) || header.block_columns < 0 || header.block_columns >= kNumDotTypes ||
      header.is_embedded < 0 || header.is_embedded > 1) {
    return false;
  }
  const auto type = static_cast<DotType>(header.block_columns);
  const bool dense = header.is_embedded == 1;
  const int64_t groups = CeilDiv(header.num_active, kGroupRows);
  int64_t dense_steps;
  if (__builtin_mul_overflow(groups, DenseSteps(type, header.in_features), &dense_steps) ||
      (dense ? header.num_values != dense_steps : type == DotType::kFloat32)) {
    return false;
  }
  Cursor cursor;
  cursor.Add(1, sizeof(PatternHeader));
  sections->groups = cursor.Add(groups + 1, sizeof(WindowGroup));
  sections->masks = cursor.Add(header.num_masks, sizeof(uint16_t));
  sections->scales = cursor.Add(groups * kGroupRows, sizeof(float));
  sections->sums = cursor.Add(groups * kGroupRows, sizeof(int32_t));
  sections->starts = cursor.Add(dense ? 0 : header.num_values, sizeof(uint32_t));
  sections->steps = cursor.Add(header.num_values, dense ? kDotBytes : sizeof(DotStep));
  sections->total = cursor.end();
  return cursor.ok();
}

const char* ParseTile(Bytes pattern, Bytes values, ValueType type, TileView* view) {
  PatternHeader header;
  if (const char* error = ReadHeader(pattern, values, type, kTileMagic, &header)) return error;
  TileSections sections;
  if (!TileLayout(header, &sections)) return "the tile pattern's header is out of range";
  if (sections.total != pattern.size) return "the tile pattern's size does not match its header";
  view->in_features = header.in_features;
  view->out_features = header.out_features;
  view->num_active = header.num_active;
  view->block_columns = header.block_columns;
  view->num_blocks = CeilDiv(header.in_features, header.block_columns);
  view->num_panels = CeilDiv(header.num_active, kPanelRows);
  view->num_values = header.num_values;
  view->starts = Section<int64_t>(pattern.data, sections.starts);
  view->panel_outputs = Section<int32_t>(pattern.data, sections.panel_outputs);
  view->rows = Section<TileRow>(pattern.data, sections.rows);
  view->output_rows = Section<int32_t>(pattern.data, sections.output_rows);
  view->columns = Section<uint8_t>(pattern.data, sections.columns);
  view->values = values.data;
  view->value_type = type;
  view->is_paired = header.magic == kPairedTileMagic;

  const int64_t tables = view->num_blocks * view->num_panels;
  int64_t previous = 0;
  for (int64_t i = 0; i <= tables; ++i) {
    if (view->starts[i] < previous) return "the tile pattern's starts are not ascending";
    previous = view->starts[i];
  }
  if (view->starts[0] != 0 || previous != view->num_values) {
    return "the tile pattern's starts do not cover its values";
  }
  int64_t output = 0;
  for (int64_t p = 0; p <= view->num_panels; ++p) {
    if (view->panel_outputs[p] < output) return "the tile pattern's outputs are not ascending";
    output = view->panel_outputs[p];
  }
  if (view->panel_outputs[0] != 0 || (view->num_panels > 0 && output != view->out_features)) {
    return "the tile pattern's panels do not cover the outputs";
  }
  return nullptr;
}

const char* ParseWindow(Bytes pattern, Bytes values, ValueType type, WindowView* view) {
  PatternHeader header;
  if (const char* error = ReadHeader(pattern, values, type, kWindowMagic, &header)) return error;
  WindowSections sections;
  if (!WindowLayout(header, &sections)) return "the window pattern's header is out of range";
  if (sections.total != pattern.size) return "the window pattern's size does not match its header";
  if (header.is_embedded && type != ValueType::kFloat32) {
    return "columns stand within values of float32 only";
  }
  view->in_features = header.in_features;
  view->out_features = header.out_features;
  view->num_active = header.num_active;
  view->num_groups = CeilDiv(header.num_active, kGroupRows);
  view->groups = Section<WindowGroup>(pattern.data, sections.groups);
  view->paths = Section<WindowPath>(pattern.data, sections.paths);
  view->masks = Section<uint16_t>(pattern.data, sections.masks);
  view->columns =
      header.is_embedded ? nullptr : Section<uint8_t>(pattern.data, sections.columns);
  view->values = values.data;
  view->value_type = type;

  const int64_t num_packets = header.num_values / kPacketValues;
  if (!GroupsFit(header, view->groups, view->num_groups, num_packets)) {
    return "the window pattern's groups do not fit together";
  }
  if (num_packets > 0 && header.in_features < 1) {
    return "the window pattern's header is out of range";
  }
  return nullptr;
}

const char* ParseDots(Bytes pattern, DotView* view) {
  PatternHeader header;
  if (pattern.size < sizeof(PatternHeader)) return "the dot pattern is shorter than its header";
  if (reinterpret_cast<uintptr_t>(pattern.data) % alignof(int64_t) != 0) {
    return "the dot pattern is not aligned";
  }
  memcpy(&header, pattern.data, sizeof(PatternHeader));
  if (header.magic != kDotMagic) return "the dot pattern is of another kind or format version";
  DotSections sections;
  if (!DotLayout(header, &sections)) return "the dot pattern's header is out of range";
  if (sections.total != pattern.size) return "the dot pattern's size does not match its header";
  view->in_features = header.in_features;
  view->out_features = header.out_features;
  view->num_active = header.num_active;
  view->num_groups = CeilDiv(header.num_active, kGroupRows);
  view->num_steps = header.num_values;
  view->type = static_cast<DotType>(header.block_columns);
  view->groups = Section<WindowGroup>(pattern.data, sections.groups);
  view->masks = Section<uint16_t>(pattern.data, sections.masks);
  view->scales = Section<float>(pattern.data, sections.scales);
  view->sums = Section<int32_t>(pattern.data, sections.sums);
  view->starts = Section<uint32_t>(pattern.data, sections.starts);
  view->steps = Section<DotStep>(pattern.data, sections.steps);
  view->dense =
      header.is_embedded ? Section<uint8_t>(pattern.data, sections.steps) : nullptr;
  if (!GroupsFit(header, view->groups, view->num_groups, view->num_steps)) {
    return "the dot pattern's groups do not fit together";
  }
  if (view->num_steps > 0 && header.in_features < 1) {
    return "the dot pattern's header is out of range";
  }
  return nullptr;
}

}  // namespace srigl
