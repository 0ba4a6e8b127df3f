//! A shard's memory: slots of fixed sizes in pages taken from the region.
//!
//! A *slot* holds an item, a chunk of a large value or an overflow bucket of the index. Sizes come
//! in classes: every multiple of the granule up to 512 bytes, for sizes that many items have, then
//! the even divisions of a page, so that rounding costs most small items at most a granule. A page
//! belongs to one class.
//!
//! Slabs in this form usually calcify: when the sizes that clients write change, the old classes
//! keep half-empty pages. Here the shard evicts by *its* order, not by class, and sparse pages are
//! emptied by moving what they hold ([`Heap::sparsest_page`]; the shard moves the entries, as only
//! it knows who points at them): within their class when it has a page's worth of free slots, and
//! into slightly larger slots when too much lies idle over all classes together.
//!
//! Addresses are 32-bit counts of granules from the start of the region; the granule grows with
//! the region (4 bytes up to 16 GiB, 8 up to 32, …), see [`Heap::granule_shift_for`].
//!
//! Invariants:
//! - a page on a class's partial list has at least one free slot, and every such page is on it;
//! - an item slot that holds no item carries [`FREE_MARK`] in its second word; no item can.

use std::sync::Arc;

use crate::region::{PAGE_LEN, PageId, Region};

/// Address of a slot: granules from the start of the region. 0 is none.
pub(crate) type Slot = u32;

/// No slot.
pub(crate) const NIL: Slot = 0;

/// Second word of a free item slot: its key would be longer than any item's may be.
pub(crate) const FREE_MARK: u64 = u64::MAX;

/// Bytes in a chunk of a large value: a page holds four.
pub(crate) const CHUNK_LEN: usize = PAGE_LEN / 4;

/// Largest slot: a whole page.
pub(crate) const SLOT_LEN_MAX: usize = PAGE_LEN;

/// Smallest slot: room for the two words of a free slot and its mark.
const SLOT_LEN_MIN: usize = 24;

/// Classes are spaced by one granule up to here, then by divisions of a page.
const FINE_LEN_MAX: usize = 512;

/// Bytes of an index bucket.
pub(crate) const BUCKET_LEN: usize = 64;

const NO_PAGE: PageId = 0;
const NO_SLOT: u16 = u16::MAX;

/// Which slots a page holds. An index into the heap's class table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClassId(u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    Items,
    Chunks,
    Buckets,
}

struct Class {
    slot_len: u32,
    slots_per_page: u16,
    kind: PageKind,
    /// First of the doubly linked pages with free slots.
    partial: PageId,
    free_slots: u32,
    pages: u32,
}

/// What is known of a page. The region keeps one for each page; the heap that took the page owns it.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct PageMeta {
    class: ClassId,
    used: u16,
    /// First free slot below `carved`; free slots are linked through their first two bytes.
    free_head: u16,
    /// Slots handed out at least once; beyond them the page is untouched.
    carved: u16,
    /// Entries that must not move: items that readers hold, and their chunks.
    pinned: u16,
    /// Links of the class's partial list.
    prev: PageId,
    next: PageId,
    /// Links of the list of all pages of the shard.
    owned_prev: PageId,
    owned_next: PageId,
    /// For chunk pages: who owns each chunk, or NIL.
    owners: [Slot; PAGE_LEN / CHUNK_LEN],
}

/// The pages of one shard. All access to the region's bytes goes through here.
pub(crate) struct Heap {
    region: Arc<Region>,
    base: *mut u8,
    len: usize,
    granule_shift: u32,
    classes: Vec<Class>,
    /// Sizes that few items have share the classes that are multiples of this, up to `FINE_LEN_MAX`:
    /// closer where a shard has pages enough.
    step: usize,
    /// Class for each count of granules up to `FINE_LEN_MAX`.
    fine: Vec<u16>,
    /// First class beyond the fine ones.
    coarse: usize,
    chunk_class: ClassId,
    bucket_class: ClassId,
    /// First of the doubly linked list of all item and chunk pages of this shard.
    owned: PageId,
    /// The page being emptied, off its partial list meanwhile.
    emptying: PageId,
    pages: u32,
    /// Classes with a page's worth of free slots: when there are none, nothing can be emptied.
    roomy: u32,
    /// Bytes in free slots of all classes.
    idle_bytes: usize,
    /// Looks for a page to empty to leave out, after one that found none.
    rest: u32,
}

// SAFETY: a heap owns the pages it took exclusively; it moves between threads with its shard,
// whose mutex orders all access.
unsafe impl Send for Heap {}

impl Heap {
    /// A heap without pages. `share_bytes` is about what the shard will come to hold.
    pub(crate) fn new(region: Arc<Region>, share_bytes: usize) -> Self {
        let base = region.base();
        let len = region.len();
        let granule_shift = Self::granule_shift_for(len);
        let granule = 1_usize << granule_shift;
        // Every class in use has a page that is half empty on average: few pages, few classes. See
        // `class_for` for the others.
        let (step, coarse_step_percent) = match share_bytes >> 20 {
            0..8 => (16, 20),
            8..32 => (8, 12),
            32..128 => (4, 6),
            _ => (4, 0),
        };
        let step = granule.max(step);
        let mut classes = Vec::new();
        let mut fine = vec![0; FINE_LEN_MAX / granule + 1];
        let mut add = |slot_len: usize, kind| {
            classes.push(Class {
                slot_len: slot_len as u32,
                slots_per_page: (PAGE_LEN / slot_len) as u16,
                kind,
                partial: NO_PAGE,
                free_slots: 0,
                pages: 0,
            });
            classes.len() - 1
        };
        let least = SLOT_LEN_MIN.next_multiple_of(granule);
        for (granules, class) in fine.iter_mut().enumerate() {
            let slot_len = granules * granule;
            *class = if slot_len <= least { 0 } else { ((slot_len - least) / granule) as u16 };
            if slot_len >= least {
                add(slot_len, PageKind::Items);
            }
        }
        let mut coarse = usize::MAX;
        let mut last_len = FINE_LEN_MAX;
        for per_page in (1..PAGE_LEN / FINE_LEN_MAX).rev() {
            let slot_len = PAGE_LEN / per_page / granule * granule;
            if per_page > 1 && slot_len * 100 < last_len * (100 + coarse_step_percent) {
                continue;
            }
            last_len = slot_len;
            let class = add(slot_len, PageKind::Items);
            coarse = coarse.min(class);
        }
        let chunk_class = ClassId(add(CHUNK_LEN, PageKind::Chunks) as u16);
        let bucket_class = ClassId(add(BUCKET_LEN, PageKind::Buckets) as u16);
        Self {
            region,
            base,
            len,
            granule_shift,
            classes,
            step,
            fine,
            coarse,
            chunk_class,
            bucket_class,
            owned: NO_PAGE,
            emptying: NO_PAGE,
            pages: 0,
            roomy: 0,
            idle_bytes: 0,
            rest: 0,
        }
    }

    fn meta(&self, page: PageId) -> &PageMeta {
        // SAFETY: only pages that this heap took are asked for, and until it gives one back nobody
        // else touches its entry; shared access through `&self`.
        unsafe { &*self.region.meta(page) }
    }

    fn meta_mut(&mut self, page: PageId) -> &mut PageMeta {
        // SAFETY: as in `meta`, exclusive through `&mut self`.
        unsafe { &mut *self.region.meta(page) }
    }

    /// Granules are as small as 32-bit addresses allow, and at least 4 bytes. A few addresses at
    /// the top stay unused: the timing wheel names its lists with them.
    pub(crate) fn granule_shift_for(region_len: usize) -> u32 {
        let mut shift = 2;
        while region_len >> shift >= u32::MAX as usize - 4096 {
            shift += 1;
        }
        shift
    }

    /// The class whose slots hold `len` bytes with the least waste. `len <= SLOT_LEN_MAX`.
    ///
    /// A small size has a class of its own once that is worth its half-empty page: when as many pages
    /// of the next multiple of the step hold a page's worth of what rounding takes.
    pub(crate) fn class_for(&self, len: usize) -> ClassId {
        debug_assert!(len <= SLOT_LEN_MAX);
        if len <= FINE_LEN_MAX {
            let class = |len: usize| self.fine[len.div_ceil(1 << self.granule_shift)];
            let (own, shared) = (class(len), class(len.next_multiple_of(self.step)));
            let [own_class, shared_class] = [own, shared].map(|id| &self.classes[usize::from(id)]);
            let spared = shared_class.pages * (shared_class.slot_len - own_class.slot_len);
            let worth_it = own_class.pages > 0 || spared >= shared_class.slot_len;
            return ClassId(if worth_it { own } else { shared });
        }
        let coarse = &self.classes[self.coarse..self.chunk_class.0 as usize];
        let beyond = coarse.partition_point(|class| (class.slot_len as usize) < len);
        ClassId((self.coarse + beyond) as u16)
    }

    pub(crate) fn chunk_class(&self) -> ClassId {
        self.chunk_class
    }

    pub(crate) fn bucket_class(&self) -> ClassId {
        self.bucket_class
    }

    pub(crate) fn slot_len(&self, class: ClassId) -> usize {
        self.classes[class.0 as usize].slot_len as usize
    }

    pub(crate) fn class_of(&self, slot: Slot) -> ClassId {
        self.meta(self.page_of(slot)).class
    }

    /// Pages this shard holds.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Bytes in slots handed out, by class: `(slot_len, pages, used slots, free slots)`.
    pub(crate) fn class_usage(&self) -> impl Iterator<Item = (usize, u32, u32, u32)> + '_ {
        self.classes.iter().filter(|class| class.kind == PageKind::Items && class.pages > 0).map(
            |class| {
                let slots = class.pages * u32::from(class.slots_per_page);
                (class.slot_len as usize, class.pages, slots - class.free_slots, class.free_slots)
            },
        )
    }

    /// Bytes of the heap's own tables.
    pub(crate) fn table_bytes(&self) -> usize {
        self.classes.capacity() * size_of::<Class>() + self.fine.capacity() * 2
    }

    // ---- slots ---------------------------------------------------------------------------

    /// Takes a free slot of the class from the pages at hand, without asking the pool.
    pub(crate) fn take_slot(&mut self, class_id: ClassId) -> Option<Slot> {
        let class = &mut self.classes[class_id.0 as usize];
        let page = class.partial;
        if page == NO_PAGE {
            return None;
        }
        let slot_len = class.slot_len as usize;
        let per_page = class.slots_per_page;
        let kind = class.kind;
        self.change_free(class_id, -1);
        let meta = self.meta_mut(page);
        let number = if meta.free_head == NO_SLOT {
            meta.carved += 1;
            meta.carved - 1
        } else {
            meta.free_head
        };
        meta.used += 1;
        let full = meta.used == per_page;
        let offset = page as usize * PAGE_LEN + number as usize * slot_len;
        if self.meta(page).free_head == number {
            self.meta_mut(page).free_head = self.read_u16(offset);
        }
        if full {
            self.unlink_partial(page);
        }
        if kind == PageKind::Items {
            // Not an item yet: whoever empties the page must pass it over.
            self.write_u64(offset + 8, FREE_MARK);
        }
        Some(self.slot_at(offset))
    }

    /// Adds a page from the pool to the class. False at the ceiling.
    pub(crate) fn add_page(&mut self, class_id: ClassId) -> bool {
        self.region.take().map(|page| self.adopt(page, class_id)).is_some()
    }

    /// The same for a page that this shard gave since it held `pages` of them.
    pub(crate) fn add_page_in_exchange(&mut self, class_id: ClassId, pages: u32) -> bool {
        self.pages < pages
            && self.region.take_in_exchange().map(|page| self.adopt(page, class_id)).is_some()
    }

    fn adopt(&mut self, page: PageId, class_id: ClassId) {
        let next = std::mem::replace(&mut self.owned, page);
        if next != NO_PAGE {
            self.meta_mut(next).owned_prev = page;
        }
        *self.meta_mut(page) = PageMeta { class: class_id, owned_next: next, ..PageMeta::UNUSED };
        let class = &mut self.classes[class_id.0 as usize];
        class.pages += 1;
        let slots = i32::from(class.slots_per_page);
        self.change_free(class_id, slots);
        self.pages += 1;
        self.link_partial(page);
    }

    /// Frees a slot. True when it was the last one of its page: that is back in the pool then, and
    /// not to be touched any more.
    pub(crate) fn free_slot(&mut self, slot: Slot) -> bool {
        let page = self.page_of(slot);
        let offset = self.offset(slot);
        let class_id = self.meta(page).class;
        let class = &mut self.classes[class_id.0 as usize];
        let kind = class.kind;
        let slot_len = class.slot_len as usize;
        let per_page = class.slots_per_page;
        self.change_free(class_id, 1);
        let number = ((offset - page as usize * PAGE_LEN) / slot_len) as u16;
        let meta = self.meta_mut(page);
        let was_full = meta.used == per_page;
        meta.used -= 1;
        if meta.used == 0 {
            if page == self.emptying {
                self.emptying = NO_PAGE;
            } else if !was_full {
                self.unlink_partial(page);
            }
            self.give_page(page);
            return true;
        }
        let next_free = meta.free_head;
        meta.free_head = number;
        if kind == PageKind::Chunks {
            meta.owners[number as usize] = NIL;
        }
        self.write_u16(offset, next_free);
        if kind == PageKind::Items {
            self.write_u64(offset + 8, FREE_MARK);
        }
        if was_full && page != self.emptying {
            self.link_partial(page);
        }
        false
    }

    /// Takes a page for the index, outside of all classes.
    pub(crate) fn take_raw_page(&mut self) -> Option<PageId> {
        let page = self.region.take()?;
        self.pages += 1;
        Some(page)
    }

    /// Gives back a page of [`take_raw_page`](Self::take_raw_page).
    pub(crate) fn give_raw_page(&mut self, page: PageId) {
        self.pages -= 1;
        self.region.give(page);
    }

    fn change_free(&mut self, class_id: ClassId, by: i32) {
        let class = &mut self.classes[class_id.0 as usize];
        let page = u32::from(class.slots_per_page);
        let was_roomy = class.free_slots >= page;
        class.free_slots = class.free_slots.wrapping_add_signed(by);
        let is_roomy = class.free_slots >= page;
        let bytes = class.slot_len as isize * by as isize;
        self.idle_bytes = self.idle_bytes.wrapping_add_signed(bytes);
        self.roomy = self.roomy + u32::from(is_roomy) - u32::from(was_roomy);
    }

    fn give_page(&mut self, page: PageId) {
        let PageMeta { class, owned_prev, owned_next, .. } = *self.meta(page);
        if owned_prev == NO_PAGE {
            self.owned = owned_next;
        } else {
            self.meta_mut(owned_prev).owned_next = owned_next;
        }
        if owned_next != NO_PAGE {
            self.meta_mut(owned_next).owned_prev = owned_prev;
        }
        let class_id = class;
        let class = &mut self.classes[class.0 as usize];
        class.pages -= 1;
        let slots = i32::from(class.slots_per_page);
        self.change_free(class_id, -slots);
        self.pages -= 1;
        self.region.give(page);
    }

    fn link_partial(&mut self, page: PageId) {
        let class = self.meta(page).class;
        let class = &mut self.classes[class.0 as usize];
        let next = std::mem::replace(&mut class.partial, page);
        let meta = self.meta_mut(page);
        meta.prev = NO_PAGE;
        meta.next = next;
        if next != NO_PAGE {
            self.meta_mut(next).prev = page;
        }
    }

    fn unlink_partial(&mut self, page: PageId) {
        let PageMeta { prev, next, class, .. } = *self.meta(page);
        if prev == NO_PAGE {
            self.classes[class.0 as usize].partial = next;
        } else {
            self.meta_mut(prev).next = next;
        }
        if next != NO_PAGE {
            self.meta_mut(next).prev = prev;
        }
    }

    // ---- emptying pages ------------------------------------------------------------------

    /// The page that is best emptied, its entries moving to other pages. `None` when emptying would
    /// not gain a page, or not be worth it. `not` is left alone: the class that wants the page.
    ///
    /// First the class with the most idle bytes, if it has a page's worth of free slots: the least
    /// used of its partial pages. Else, when more than a sixteenth of the shard's bytes lie idle,
    /// a page that is at most half used, of any class; its entries go to slots a little larger.
    ///
    /// Cost: one pass over the class table and some partial pages; nothing when nothing is idle.
    pub(crate) fn sparsest_page(&mut self, not: Option<ClassId>) -> Option<(PageId, PageKind)> {
        const PAGES_LOOKED_AT: usize = 64;
        /// A look that finds nothing is not repeated for so many calls.
        const REST: u32 = 32;
        // The class that wants the page may be the only roomy one: then the second way is left.
        let classes = if self.roomy > 0 { &self.classes[..] } else { &[] };
        let roomiest = classes
            .iter()
            .enumerate()
            .filter(|(id, class)| {
                class.kind != PageKind::Buckets
                    && not != Some(ClassId(*id as u16))
                    && class.pages > 1
                    && class.free_slots >= u32::from(class.slots_per_page)
            })
            .max_by_key(|(_, class)| u64::from(class.free_slots) * u64::from(class.slot_len));
        if let Some((_, class)) = roomiest {
            let best = self
                .partial_pages(class)
                .take(PAGES_LOOKED_AT)
                .filter(|&(_, meta)| {
                    // The other partial pages must have room for all that this one holds.
                    let free_here = u32::from(class.slots_per_page - meta.used);
                    class.free_slots - free_here >= u32::from(meta.used)
                })
                .min_by_key(|(_, meta)| meta.used);
            if let Some((page, _)) = best {
                return Some((page, class.kind));
            }
        }
        if self.idle_bytes < self.pages as usize * PAGE_LEN / 16 {
            return None;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        let best = self
            .classes
            .iter()
            .enumerate()
            .filter(|(id, class)| {
                class.kind == PageKind::Items && not != Some(ClassId(*id as u16)) && class.pages > 0
            })
            .flat_map(|(_, class)| self.partial_pages(class).take(4).map(move |page| (class, page)))
            .map(|(class, (page, meta))| (u32::from(meta.used) * class.slot_len, page))
            .min()
            .filter(|&(used, _)| used as usize <= PAGE_LEN / 2);
        if best.is_none() {
            self.rest = REST;
        }
        best.map(|(_, page)| (page, PageKind::Items))
    }

    /// Pages of a class with free slots whose entries may move.
    fn partial_pages<'a>(
        &'a self,
        class: &Class,
    ) -> impl Iterator<Item = (PageId, &'a PageMeta)> + use<'a> {
        let next = move |page: PageId| (page != NO_PAGE).then(|| (page, self.meta(page)));
        std::iter::successors(next(class.partial), move |(_, meta)| next(meta.next))
            .filter(|(_, meta)| meta.pinned == 0)
    }

    /// A free slot for an entry that leaves a page of this class: of the class, or of one whose
    /// slots are at most a fifth larger.
    pub(crate) fn take_slot_near(&mut self, class: ClassId) -> Option<Slot> {
        if let Some(slot) = self.take_slot(class) {
            return Some(slot);
        }
        let kind = self.classes[class.0 as usize].kind;
        let len_max = self.slot_len(class) / 5 * 6 + 32;
        for id in class.0 + 1..self.classes.len() as u16 {
            let near = &self.classes[id as usize];
            if near.kind != kind || near.slot_len as usize > len_max {
                return None;
            }
            if let Some(slot) = self.take_slot(ClassId(id)) {
                return Some(slot);
            }
        }
        None
    }

    /// Stops a page of the partial list from handing out slots while it is emptied; its entries
    /// stay readable. Returns its class and the addresses of all slots ever handed out.
    pub(crate) fn begin_emptying(&mut self, page: PageId) -> (ClassId, Vec<Slot>) {
        debug_assert!(self.emptying == NO_PAGE);
        self.unlink_partial(page);
        self.emptying = page;
        let meta = self.meta(page);
        let class = &self.classes[meta.class.0 as usize];
        let start = page as usize * PAGE_LEN;
        let slots = (0..meta.carved)
            .map(|number| self.slot_at(start + number as usize * class.slot_len as usize))
            .collect();
        (meta.class, slots)
    }

    /// Ends what [`begin_emptying`](Self::begin_emptying) began. A page in which entries had to
    /// stay hands out slots again. Not for one that went back to the pool with its last slot.
    pub(crate) fn end_emptying(&mut self) {
        let page = std::mem::replace(&mut self.emptying, NO_PAGE);
        if page != NO_PAGE {
            self.link_partial(page);
        }
    }

    /// Forbids or allows (`by` = -1) the page of this slot to be emptied.
    pub(crate) fn pin_page(&mut self, slot: Slot, by: i16) {
        let meta = self.meta_mut(self.page_of(slot));
        meta.pinned = meta.pinned.wrapping_add_signed(by);
    }

    pub(crate) fn chunk_owner(&self, chunk: Slot) -> Slot {
        let page = self.page_of(chunk);
        self.meta(page).owners[self.chunk_number(chunk)]
    }

    pub(crate) fn set_chunk_owner(&mut self, chunk: Slot, owner: Slot) {
        let page = self.page_of(chunk);
        let number = self.chunk_number(chunk);
        self.meta_mut(page).owners[number] = owner;
    }

    fn chunk_number(&self, chunk: Slot) -> usize {
        self.offset(chunk) % PAGE_LEN / CHUNK_LEN
    }

    /// Gives every page back at once. All addresses are void afterwards; `raw` are the pages of
    /// the index.
    pub(crate) fn clear(&mut self, raw: &[PageId]) {
        let mut page = std::mem::replace(&mut self.owned, NO_PAGE);
        while page != NO_PAGE {
            let next = self.meta(page).owned_next;
            self.region.give(page);
            page = next;
        }
        for &page in raw {
            self.region.give(page);
        }
        self.pages = 0;
        self.roomy = 0;
        self.idle_bytes = 0;
        for class in &mut self.classes {
            class.partial = NO_PAGE;
            class.free_slots = 0;
            class.pages = 0;
        }
    }

    // ---- addresses and bytes -------------------------------------------------------------

    #[inline]
    pub(crate) fn offset(&self, slot: Slot) -> usize {
        (slot as usize) << self.granule_shift
    }

    fn slot_at(&self, offset: usize) -> Slot {
        (offset >> self.granule_shift) as Slot
    }

    pub(crate) fn page_of(&self, slot: Slot) -> PageId {
        (self.offset(slot) / PAGE_LEN) as PageId
    }

    /// The region, and the shift from addresses in it to offsets.
    pub(crate) fn region(&self) -> (&Arc<Region>, u32) {
        (&self.region, self.granule_shift)
    }

    /// Address of byte `offset`, for prefetching and for filling chunks outside the lock.
    /// Any offset is allowed: it is wrapped into the region.
    #[inline]
    pub(crate) fn pointer(&self, offset: usize) -> *mut u8 {
        self.base.wrapping_add(if offset < self.len { offset } else { 0 })
    }

    #[inline]
    fn check(&self, offset: usize, len: usize) -> *mut u8 {
        // Also in release builds: a wrong address must never reach beyond the mapping.
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "address in region");
        self.base.wrapping_add(offset)
    }

    /// Bytes of a slot or index page of this shard.
    #[inline]
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        let pointer = self.check(offset, len);
        // SAFETY: in bounds by the check; the pages belong to this shard, whose lock the caller
        // holds to have `&self`, and all writes go through `&mut self`. Anonymous memory is
        // zeroed, so always initialised.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }

    #[inline]
    pub(crate) fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        let pointer = self.check(offset, len);
        // SAFETY: as in `bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }

    /// Copies within the shard's memory; the ranges must not overlap.
    pub(crate) fn copy(&mut self, from: usize, to: usize, len: usize) {
        let source = self.check(from, len);
        let target = self.check(to, len);
        assert!(from + len <= to || to + len <= from, "slots are disjoint");
        // SAFETY: both in bounds, disjoint by the assertion, exclusive by `&mut self`.
        unsafe { std::ptr::copy_nonoverlapping(source, target, len) }
    }

    pub(crate) fn read_u16(&self, offset: usize) -> u16 {
        let pointer = self.check(offset, 2).cast::<u16>();
        // SAFETY: in bounds; unaligned reads need no alignment; see `bytes` for exclusion.
        unsafe { pointer.read_unaligned() }
    }

    pub(crate) fn write_u16(&mut self, offset: usize, value: u16) {
        let pointer = self.check(offset, 2).cast::<u16>();
        // SAFETY: as in `read_u16`, exclusive by `&mut self`.
        unsafe { pointer.write_unaligned(value) }
    }

    pub(crate) fn read_u32(&self, offset: usize) -> u32 {
        let pointer = self.check(offset, 4).cast::<u32>();
        // SAFETY: as in `read_u16`.
        unsafe { pointer.read_unaligned() }
    }

    pub(crate) fn write_u32(&mut self, offset: usize, value: u32) {
        let pointer = self.check(offset, 4).cast::<u32>();
        // SAFETY: as in `write_u16`.
        unsafe { pointer.write_unaligned(value) }
    }

    pub(crate) fn read_u64(&self, offset: usize) -> u64 {
        let pointer = self.check(offset, 8).cast::<u64>();
        // SAFETY: as in `read_u16`.
        unsafe { pointer.read_unaligned() }
    }

    /// Two neighbours, with one check.
    #[inline]
    pub(crate) fn read_two_u64(&self, offset: usize) -> [u64; 2] {
        let pointer = self.check(offset, 16).cast::<[u64; 2]>();
        // SAFETY: as in `read_u16`.
        unsafe { pointer.read_unaligned() }
    }

    #[inline]
    pub(crate) fn write_two_u64(&mut self, offset: usize, values: [u64; 2]) {
        let pointer = self.check(offset, 16).cast::<[u64; 2]>();
        // SAFETY: as in `write_u16`.
        unsafe { pointer.write_unaligned(values) }
    }

    pub(crate) fn write_u64(&mut self, offset: usize, value: u64) {
        let pointer = self.check(offset, 8).cast::<u64>();
        // SAFETY: as in `write_u16`.
        unsafe { pointer.write_unaligned(value) }
    }
}

impl PageMeta {
    const UNUSED: Self = Self {
        class: ClassId(0),
        used: 0,
        free_head: NO_SLOT,
        carved: 0,
        pinned: 0,
        prev: NO_PAGE,
        next: NO_PAGE,
        owned_prev: NO_PAGE,
        owned_next: NO_PAGE,
        owners: [NIL; PAGE_LEN / CHUNK_LEN],
    };
}
