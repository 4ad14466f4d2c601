//! The bytes of the audit protocol: netlink headers, the status, rules. Pure, native byte order.
//!
//! Numbers and layouts are those of `linux/audit.h`, which is a stable interface.

/// `AUDIT_GET`: tell the status.
pub(super) const GET: u16 = 1000;
/// `AUDIT_SET`: change the parts of the status that the mask names.
pub(super) const SET: u16 = 1001;
/// `AUDIT_USER`: a message of user space, put into the stream.
pub(super) const USER: u16 = 1005;
/// `AUDIT_ADD_RULE`.
pub(super) const ADD_RULE: u16 = 1011;
/// `AUDIT_DEL_RULE`.
pub(super) const DEL_RULE: u16 = 1012;
/// `AUDIT_LIST_RULES`.
pub(super) const LIST_RULES: u16 = 1013;
/// `AUDIT_LANDLOCK_ACCESS`: Landlock refused something.
pub(super) const LANDLOCK_ACCESS: u16 = 1423;
/// `AUDIT_LANDLOCK_DOMAIN`: a domain was first seen, or is gone.
pub(super) const LANDLOCK_DOMAIN: u16 = 1424;

/// `NLMSG_ERROR`: an error, or with number 0 an acknowledgement.
pub(super) const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
/// `NLMSG_DONE`: the end of a list.
pub(super) const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// Whether records of this kind are Landlock's.
pub(super) fn is_landlock(kind: u16) -> bool {
    kind == LANDLOCK_ACCESS || kind == LANDLOCK_DOMAIN
}

/// Bytes of a `struct nlmsghdr`.
pub(super) const HEADER_BYTES: usize = 16;

/// The fields of a `struct nlmsghdr` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Length with the header.
    pub(super) bytes: usize,
    pub(super) kind: u16,
    pub(super) sequence: u32,
}

impl Header {
    /// Reads the header at the beginning of `message`.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        Some(Self {
            bytes: usize::try_from(u32_at(message, 0)?).ok()?,
            kind: u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?),
            sequence: u32_at(message, 8)?,
        })
    }
}

/// A request, ready to be sent.
pub(super) fn request(kind: u16, flags: i32, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let bytes = HEADER_BYTES + payload.len();
    let mut message = Vec::with_capacity(bytes);
    message.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(payload);
    message
}

/// The native 32-bit number at `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

/// The part of `struct audit_status` that matters here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// 0 off, 1 on, 2 on and locked until the next boot.
    pub(super) enabled: u32,
    /// What the kernel does when it loses a record: 0 nothing, 1 print, 2 panic.
    pub(super) failure: u32,
    /// The audit daemon's pid; 0 where there is none.
    pub(super) daemon: u32,
    /// How many records may wait in the queue; 0 for any number.
    pub(super) backlog_limit: u32,
    /// How many records were lost since boot (or since somebody set it back).
    pub(super) lost: u32,
}

impl Status {
    const MASK_ENABLED: u32 = 1;
    const MASK_BACKLOG_LIMIT: u32 = 0x10;
    /// The failure mode in which a lost record ends the machine.
    pub(super) const FAILURE_PANIC: u32 = 2;
    /// On, and locked until the next boot.
    pub(super) const ENABLED_LOCKED: u32 = 2;

    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        Some(Self {
            enabled: u32_at(payload, 4)?,
            failure: u32_at(payload, 8)?,
            daemon: u32_at(payload, 12)?,
            backlog_limit: u32_at(payload, 20)?,
            lost: u32_at(payload, 24)?,
        })
    }

    /// The payload of an `AUDIT_SET` that only changes `enabled`.
    pub(super) fn set_enabled(enabled: u32) -> Vec<u8> {
        words(&[Self::MASK_ENABLED, enabled, 0, 0, 0, 0, 0, 0])
    }

    /// The payload of an `AUDIT_SET` that only changes the backlog limit.
    pub(super) fn set_backlog_limit(limit: u32) -> Vec<u8> {
        words(&[Self::MASK_BACKLOG_LIMIT, 0, 0, 0, 0, limit, 0, 0])
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What a loaded rule means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RuleKind {
    /// The rule that Provost adds.
    Ours,
    /// Somebody else's.
    Foreign,
    /// Somebody else's, and it may keep Landlock's records out of the stream.
    HidesLandlock,
}

/// `struct audit_rule_data`, of which at most the key's text follows the fixed part.
pub(super) mod rule {
    use super::{RuleKind, is_landlock, u32_at};

    const FILTER_TASK: u32 = 1;
    const FILTER_EXCLUDE: u32 = 5;
    const FILTER_PREPEND: u32 = 0x10;
    const ACTION_NEVER: u32 = 0;
    const FIELD_MSGTYPE: u32 = 12;
    const FIELD_FILTERKEY: u32 = 210;
    const OPERATOR_EQUAL: u32 = 0x4000_0000;
    const FIELDS_MAX: usize = 64;
    /// The key by which our rule is known.
    const KEY: &[u8] = b"provost";

    const AT_ACTION: usize = 4;
    const AT_FIELD_COUNT: usize = 8;
    const AT_FIELDS: usize = 12 + 4 * FIELDS_MAX;
    const AT_VALUES: usize = AT_FIELDS + 4 * FIELDS_MAX;
    const AT_OPERATORS: usize = AT_VALUES + 4 * FIELDS_MAX;
    const AT_KEY_BYTES: usize = AT_OPERATORS + 4 * FIELDS_MAX;
    const AT_KEY: usize = AT_KEY_BYTES + 4;

    /// `-A task,never` with our key, for `AUDIT_ADD_RULE`: put first, so that no new task gets an audit
    /// context, which every one of its system calls would pay for.
    pub(in super::super) fn to_add() -> Vec<u8> {
        encode(FILTER_TASK | FILTER_PREPEND)
    }

    /// The same for `AUDIT_DEL_RULE`: the kernel compares the flags, and does not keep `PREPEND`.
    pub(in super::super) fn to_delete() -> Vec<u8> {
        encode(FILTER_TASK)
    }

    fn encode(flags: u32) -> Vec<u8> {
        let mut rule = vec![0; AT_KEY];
        let mut put = |offset: usize, value: u32| {
            rule[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        };
        put(0, flags);
        put(AT_ACTION, ACTION_NEVER);
        put(AT_FIELD_COUNT, 1);
        put(AT_FIELDS, FIELD_FILTERKEY);
        put(AT_VALUES, KEY.len() as u32);
        put(AT_OPERATORS, OPERATOR_EQUAL);
        put(AT_KEY_BYTES, KEY.len() as u32);
        rule.extend_from_slice(KEY);
        rule
    }

    /// A rule as somebody else might have it: the same under another key.
    #[cfg(test)]
    pub(in super::super) fn of_somebody_else(add: bool) -> Vec<u8> {
        let mut rule = encode(FILTER_TASK | if add { FILTER_PREPEND } else { 0 });
        rule[AT_KEY] = b'x';
        rule
    }

    /// What a rule from `AUDIT_LIST_RULES` means to us. Where in doubt, it hides.
    pub(in super::super) fn classify(rule: &[u8]) -> RuleKind {
        let word = |offset| u32_at(rule, offset).unwrap_or(u32::MAX);
        let fields = (word(AT_FIELD_COUNT) as usize).min(FIELDS_MAX);
        if word(0) == FILTER_TASK
            && word(AT_ACTION) == ACTION_NEVER
            && fields == 1
            && word(AT_FIELDS) == FIELD_FILTERKEY
            && word(AT_KEY_BYTES) as usize == KEY.len()
            && rule.get(AT_KEY..AT_KEY + KEY.len()) == Some(KEY)
        {
            return RuleKind::Ours;
        }
        if word(0) & !FILTER_PREPEND != FILTER_EXCLUDE {
            return RuleKind::Foreign;
        }
        // All fields of a rule must match; one that wants some other message type settles it.
        let wants_another_type = (0..fields).any(|at| {
            word(AT_FIELDS + 4 * at) == FIELD_MSGTYPE
                && word(AT_OPERATORS + 4 * at) == OPERATOR_EQUAL
                && !u16::try_from(word(AT_VALUES + 4 * at)).is_ok_and(is_landlock)
        });
        if wants_another_type {
            RuleKind::Foreign
        } else {
            RuleKind::HidesLandlock
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn exclude(operator: u32, kind: u32) -> Vec<u8> {
            let mut rule = encode(FILTER_EXCLUDE);
            for (offset, value) in [
                (AT_FIELDS, FIELD_MSGTYPE),
                (AT_VALUES, kind),
                (AT_OPERATORS, operator),
            ] {
                rule[offset..offset + 4].copy_from_slice(&u32::to_ne_bytes(value));
            }
            rule
        }

        #[test]
        fn our_rule_is_known_by_its_key() {
            assert_eq!(classify(&to_delete()), RuleKind::Ours);
            let mut another = to_delete();
            another[AT_KEY] = b'q';
            assert_eq!(classify(&another), RuleKind::Foreign);
            assert_eq!(classify(&another[..40]), RuleKind::Foreign);
        }

        #[test]
        fn a_rule_that_excludes_landlock_records_hides() {
            assert_eq!(classify(&exclude(OPERATOR_EQUAL, 1423)), RuleKind::HidesLandlock);
            assert_eq!(classify(&exclude(OPERATOR_EQUAL, 1424)), RuleKind::HidesLandlock);
            assert_eq!(classify(&exclude(OPERATOR_EQUAL, 1300)), RuleKind::Foreign);
            // "Not 1300" matches Landlock's too.
            assert_eq!(classify(&exclude(0x3000_0000, 1300)), RuleKind::HidesLandlock);
        }
    }
}
